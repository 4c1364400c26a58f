"""A stand-in of the Hugging Face hub on this machine: its real client makes repositories there, pushes and fetches."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attrs

from tests.stores import serving

OWNER, READER = "hf_owner", "hf_reader"
"""Tokens: of one who may write everywhere, and of one who may write nowhere."""

ASTRAY = "owner/astray"
"""A repository whose every address leads to itself, which the client's HTTP library gives up on."""


@attrs.define
class Repository:
    """A repository.

    Args:
        commits: to files by name.
        branches: to commits.
        private: whether only those who are logged in see it.
        gated: whether only those who are logged in get its files.
        messages: of the commits, in order.
    """

    commits: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    branches: dict[str, str] = attrs.field(factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = attrs.field(factory=list)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", message: str = "by hand") -> str:
        """Add a commit of these files, and of no others, to a branch; return its name."""
        content = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
        commit = hashlib.sha1(f"{len(self.messages)} {content}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        self.messages.append(message)
        return commit

    def commit_of(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def head(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


@attrs.define
class Hub:
    """The stand-in.

    Args:
        url: its address.
        repositories: by owner and name.
        uploads: what was sent as large files, by SHA-256.
        requests: method and path of everything that it was asked for.
    """

    url: str
    repositories: dict[str, Repository] = attrs.field(factory=dict)
    uploads: dict[str, bytes] = attrs.field(factory=dict)
    requests: list[tuple[str, str]] = attrs.field(factory=list)

    def environment(self, folder: Path, token: str | None = OWNER) -> dict[str, str]:
        """Return the environment of a process whose hub this is, with its cache in a folder."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        off = {f"HF_HUB_DISABLE_{what}": "1" for what in ("TELEMETRY", "XET", "PROGRESS_BARS")}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "cache")} | ({"HF_TOKEN": token} if token else {})
        return inherited | off | own


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    _REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+)"
    _ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"/api/models/{_REPOSITORY}(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)", "tree"),
        ("POST", rf"/api/models/{_REPOSITORY}/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", rf"/api/models/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/models/{_REPOSITORY}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/uploads/(?P<digest>[0-9a-f]{64})", "upload"),
        ("GET", rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
    )

    def _serve(self) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if ASTRAY in path:
            self._send(b"", {"Location": self.path}, 302)
            return
        method = "GET" if self.command == "HEAD" else self.command
        for expected, route, name in self._ROUTES:
            match = re.fullmatch(route, path)
            if match and method == expected:
                if method == "POST" and name != "validate" and (refused := self._refused()):
                    self._refuse(*refused)
                else:
                    found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    getattr(self, f"_{name}")(body, **found)
                return
        self._refuse(404, "there is nothing here")

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - the server's own naming

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _refused(self) -> tuple[int, str] | None:
        if self._token is None:
            return 401, "Invalid username or password."
        return None if self._token == OWNER else (403, "You don't have the rights to write there.")

    def _answer(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        self._send(b"{}", headers if code is None else {**headers, "X-Error-Code": code}, status)

    def _found(self, repository: str, revision: str | None) -> tuple[Repository, str] | None:
        found = self.hub.repositories.get(repository)
        if found is None or (found.private and self._token is None):
            self._refuse(404, "Repository not found", "RepoNotFound")
            return None
        commit = found.commit_of(revision or "main")
        if commit is None:
            self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return found, commit

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            self._answer({"error": "You already created this model repo", "url": url}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit")
        self._answer({"url": url, "name": name})

    def _validate(self, body: bytes) -> None:
        """Refuse a card without what the hub asks of one; a licence that it does not know among it."""
        from huggingface_hub import ModelCard

        data = ModelCard(json.loads(body)["content"], ignore_metadata_errors=False).data
        known = data.license in {"mit", "apache-2.0", "apple-amlr", "cc-by-4.0", "other"}
        errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _info(self, _: bytes, repository: str, revision: str | None = None) -> None:
        if found := self._found(repository, revision):
            there, commit = found
            siblings = [{"rfilename": name} for name in there.commits[commit]]
            self._answer({"id": repository, "sha": commit, "private": there.private, "siblings": siblings})

    def _tree(self, _: bytes, repository: str, revision: str) -> None:
        if found := self._found(repository, revision):
            there, commit = found
            files = there.commits[commit].items()
            self._answer([{"type": "file", "path": name, "size": len(data), "oid": commit} for name, data in files])

    def _branch(self, _: bytes, repository: str, revision: str) -> None:
        there = self.hub.repositories[repository]
        if revision in there.branches:
            self._answer({"error": "the branch is there"}, 409)
        else:
            there.branches[revision] = there.branches["main"]
            self._answer({})

    def _preupload(self, body: bytes, repository: str, revision: str) -> None:
        del repository, revision
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
            for file in json.loads(body)["files"]
        ]
        self._answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def _batch(self, body: bytes, repository: str) -> None:
        del repository
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/uploads/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, digest: str) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.uploads[digest] = body
        self._answer({})

    def _commit(self, body: bytes, repository: str, revision: str) -> None:
        there = self.hub.repositories[repository]
        files, message = dict(there.head(revision)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = there.commit(files, revision, message)
        self._answer({"commitOid": commit, "commitUrl": f"{self.hub.url}/{repository}/commit/{commit}"})

    def _resolve(self, _: bytes, repository: str, revision: str, file: str) -> None:
        if found := self._found(repository, revision):
            there, commit = found
            data = there.commits[commit].get(file)
            if there.gated and self._token is None:
                self._refuse(401, f"Access to model {repository} is restricted.", "GatedRepo")
            elif data is None:
                self._refuse(404, "Entry not found", "EntryNotFound")
            else:
                self._send(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit})

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Yield a hub on this machine that holds nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    with serving(server):
        yield hub

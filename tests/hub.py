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
import pytest

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

    def use(self, monkeypatch: pytest.MonkeyPatch, folder: Path, token: str | None = OWNER) -> None:
        """Have this process's client use this hub, with its cache in a folder."""
        from huggingface_hub import constants, hf_api

        monkeypatch.delenv("HF_TOKEN", raising=False)
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(folder / "cache" / "hub"),
            "HF_TOKEN_PATH": str(folder / "cache" / "token"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)


class _RefusedError(Exception):
    """Status, message, and the hub's own word for it."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    _MODEL, _REVISION = r"/api/models/([\w.-]+/[\w.-]+)", r"/([^/]+)"
    _ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"{_MODEL}(?:/revision{_REVISION})?", "info"),
        ("GET", rf"{_MODEL}/tree{_REVISION}", "tree"),
        ("POST", rf"{_MODEL}/branch{_REVISION}", "branch"),
        ("POST", rf"{_MODEL}/preupload{_REVISION}", "preupload"),
        ("POST", rf"{_MODEL}/commit{_REVISION}", "commit"),
        ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/uploads/([0-9a-f]{64})", "upload"),
        ("GET", rf"/([\w.-]+/[\w.-]+)/resolve{_REVISION}/(.+)", "resolve"),
    )

    def _serve(self) -> None:
        """Answer with what the method of a route returns: values of JSON, or bytes and headers."""
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if ASTRAY in path:
            self._send(b"", {"Location": self.path}, 302)
            return
        try:
            answer = self._answer(path, body)
        except _RefusedError as refused:
            status, message, *code = refused.args
            self._send(b"{}", {"X-Error-Message": message} | dict(zip(["X-Error-Code"], code, strict=False)), status)
        else:
            status, value = answer if isinstance(answer, tuple) else (200, answer)
            if isinstance(value, bytes):
                self._send(value, self.marks)
            else:
                self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - the server's own naming

    def _answer(self, path: str, body: bytes) -> Any:
        method = "GET" if self.command == "HEAD" else self.command
        for expected, route, name in self._ROUTES:
            if method == expected and (match := re.fullmatch(route, path)):
                if method == "POST" and name != "validate" and self._token != OWNER:
                    raise _RefusedError(*((403, "You have no rights.") if self._token else (401, "Invalid username.")))
                return getattr(self, f"_{name}")(body, *(unquote(one) for one in match.groups() if one is not None))
        raise _RefusedError(404, "there is nothing here")

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _send(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _found(self, repository: str, revision: str) -> tuple[Repository, str]:
        found = self.hub.repositories.get(repository)
        if found is None or (found.private and self._token is None):
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        if (commit := found.commit_of(revision)) is None:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, commit

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return 409, answer | {"error": "You already created this model repo"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit")
        return answer

    def _validate(self, body: bytes) -> Any:
        """Refuse a card without what the hub asks of one; a licence that it does not know among it."""
        from huggingface_hub import ModelCard

        data = ModelCard(json.loads(body)["content"], ignore_metadata_errors=False).data
        if data.license in {"mit", "apache-2.0", "apple-amlr", "cc-by-4.0", "other"}:
            return {"errors": [], "warnings": []}
        return 400, {"errors": [{"message": '"license" must be one of [apache-2.0, mit, ...]'}], "warnings": []}

    def _info(self, _: bytes, repository: str, revision: str = "main") -> Any:
        there, commit = self._found(repository, revision)
        siblings = [{"rfilename": name} for name in there.commits[commit]]
        return {"id": repository, "sha": commit, "private": there.private, "siblings": siblings}

    def _tree(self, _: bytes, repository: str, revision: str) -> Any:
        there, commit = self._found(repository, revision)
        files = there.commits[commit].items()
        return [{"type": "file", "path": name, "size": len(data), "oid": commit} for name, data in files]

    def _branch(self, _: bytes, repository: str, revision: str) -> Any:
        branches = self.hub.repositories[repository].branches
        if revision in branches:
            return 409, {"error": "the branch is there"}
        branches[revision] = branches["main"]
        return {}

    def _preupload(self, body: bytes, *_: str) -> Any:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}

    def _batch(self, body: bytes, _: str) -> Any:
        asked, place = json.loads(body)["objects"], f"{self.hub.url}/uploads"
        objects = [{**one, "actions": {"upload": {"href": f"{place}/{one['oid']}"}}} for one in asked]
        return {"transfer": "basic", "objects": objects}

    def _upload(self, body: bytes, digest: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.uploads[digest] = body
        return {}

    def _commit(self, body: bytes, repository: str, revision: str) -> Any:
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
        return {"commitOid": commit, "commitUrl": f"{self.hub.url}/{repository}/commit/{commit}"}

    def _resolve(self, _: bytes, repository: str, revision: str, file: str) -> Any:
        there, commit = self._found(repository, revision)
        if there.gated and self._token is None:
            raise _RefusedError(401, f"Access to model {repository} is restricted.", "GatedRepo")
        if (data := there.commits[commit].get(file)) is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        self.marks = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        return data

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

"""Names on the hub, through its real client, against a server of the hub's protocol on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mobileclip.encoders import CheckpointError, save_model
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.encoders.checkpoints.hub import parsed
from mobileclip.encoders.checkpoints.published import PUBLISHED
from tests.encoders.small import SMALL, randomised

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def hub(tmp_path):
    """A server with the repositories `owner/one` (one checkpoint) and `owner/two` (two); yields an environment."""
    save_model(randomised(SMALL), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    moved = tmp_path / "moved"
    repositories = {"owner/one": ["README.md", "model.safetensors"], "owner/two": ["a.safetensors", "b.safetensors"]}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, body, headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            for name, files in repositories.items():
                if path.startswith(f"/api/models/{name}"):
                    siblings = [{"rfilename": file} for file in files]
                    body = {"id": name, "sha": COMMIT, "siblings": siblings}
                    if "/tree/" in path:
                        body = [{"type": "file", "path": file, "size": len(content), "oid": COMMIT} for file in files]
                    return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
                if path.startswith(f"/{name}/resolve/") and path.rsplit("/", 1)[1] in files:
                    revision = path.removeprefix(f"/{name}/resolve/").split("/")[0]
                    # The branch moves on with every look at it; a commit is what it is.
                    commit = COMMIT if revision != "main" or not moved.exists() else LATER
                    data = content if commit == COMMIT else moved.read_bytes()
                    etag = hashlib.sha256(data).hexdigest()
                    return self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "Content-Type": "application/json"})

        do_HEAD = do_GET  # noqa: N815 - the server's own naming

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    server.shutdown()
    server.server_close()


def run(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["hf-hub:owner/one", "hf-hub:owner/two/b.safetensors"])
def test_a_checkpoint_loads_by_its_name_on_the_hub(name, hub):
    result = run([sys.executable, "-m", "mobileclip.cli", "info", name], hub)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["form"] == "training"


def test_what_cannot_be_fetched_says_what_to_do(hub):
    said = {
        "hf-hub:owner/two": "holds several checkpoints",
        "hf-hub:owner/none": "could not fetch",
        "hf-hub:owner": "write hf-hub:owner/name",
    }
    code = """
import sys
from mobileclip.cli import main
for name in sys.argv[1:]:
    try:
        main(["info", name])
    except SystemExit as stop:
        print(f"status {stop.code}", file=sys.stderr)
"""
    result = run([sys.executable, "-c", code, *said], hub)
    assert result.stdout == ""
    for message, part in zip(said.values(), result.stderr.split("status 2"), strict=False):
        assert message in part
    assert result.stderr.count("status 2") == len(said)


STEPS = """
import json, shutil, sys
from mobileclip.cli import main
for step, *arguments in json.loads(sys.argv[1]):
    if step == "copy":
        shutil.copyfile(*arguments)
        continue
    status = 0
    try:
        main(["info", *arguments])
    except SystemExit as stop:
        status = stop.code
    print(f"status {status}", file=sys.stderr)
"""


def outcomes(steps, environment):
    """What `mobileclip info` says of each address among `steps`, in one process: its status and its errors."""
    result = run([sys.executable, "-c", STEPS, json.dumps(steps)], environment)
    said = result.stderr.split("status ")
    return [
        (int(after.split("\n")[0]), before.partition("\n")[2])
        for before, after in zip(["\n" + said[0], *said[1:-1]], said[1:], strict=True)
    ]


@pytest.mark.slow
def test_what_came_first_is_what_comes_later(hub, tmp_path):
    save_model(randomised(SMALL, seed=1), tmp_path / "other.safetensors")
    # Another model under the same name: the commit that came first is asked for, unless the branch is named.
    moves = ["copy", str(tmp_path / "other.safetensors"), str(tmp_path / "moved")]
    steps = [["info", "hf-hub:owner/one"], moves, ["info", "hf-hub:owner/one"]]
    assert [status for status, _ in outcomes(steps, hub)] == [0, 0]
    assert not list((tmp_path / "cache").rglob(f"*{LATER}*"))
    remembered = json.loads((tmp_path / "cache" / "hub" / ".mobileclip" / "weights.json").read_text())
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert remembered["files"] == {"hf-hub:owner/one": {"commit": COMMIT, "sha256": digest}}

    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file())
    steps = [
        ["info", "hf-hub:owner/one@main"],
        ["info", f"hf-hub:owner/one@{COMMIT}#sha256={digest}"],
        ["info", f"hf-hub:owner/one#sha256={'0' * 64}"],
        ["copy", str(tmp_path / "other.safetensors"), str(blob)],
        ["info", "hf-hub:owner/one"],
    ]
    branch, pinned, wrong, changed = outcomes(steps, hub)
    assert branch[0] == pinned[0] == 0
    assert list((tmp_path / "cache").rglob(f"*{LATER}*"))
    assert wrong[0] == changed[0] == 2
    assert "is not the file that was expected" in wrong[1]
    assert "hf-hub:owner/one is no longer what was fetched first" in changed[1]


@pytest.mark.parametrize(
    "address",
    ["hf-hub:owner", "hf-hub:owner/name@", "hf-hub:owner/name#sha256=12", "hf-hub:owner/name/../x\n", "hf-hub:/x/y"],
)
def test_addresses_that_say_nothing(address):
    with pytest.raises(CheckpointError, match="names no checkpoint on the hub"):
        parsed(address)


def test_published_weights_are_addresses():
    for name, published in PUBLISHED.items():
        assert parsed(PRETRAINED[name]) == published
    assert {"mobileclip_s0", "mobileclip_b"} <= {
        name for name, published in PUBLISHED.items() if published.sha256 and len(published.revision or "") == 40
    }

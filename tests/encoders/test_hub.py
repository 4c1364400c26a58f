"""Names on the hub, through its real client, against a server of the hub's protocol on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mobileclip.encoders import save_model
from tests.encoders.small import SMALL, randomised

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """A server with the repositories `owner/one` (one checkpoint) and `owner/two` (two); yields an environment."""
    save_model(randomised(SMALL), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
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
                    etag = hashlib.sha256(content).hexdigest()
                    return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
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

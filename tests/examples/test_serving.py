"""The server of the examples, started as people start it, and asked by several threads while its model is replaced."""

import json
import re
import shutil
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn  # noqa: F401
from starlette.testclient import TestClient

import mobileclip
from mobileclip.export import bundled_samples
from tests.preloaded import preloaded
from tests.waiting import wait_for

APP = Path(__file__).parents[2] / "examples" / "serving" / "app.py"
TEXTS = ("a cat", "two dogs on a beach", "a red bus", "a house", "three birds", "a boat on a lake")


pytestmark = pytest.mark.extra("openvino")


def asked(address, data=None):
    with urllib.request.urlopen(urllib.request.Request(address, data=data), timeout=60) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def models(small_export, tmp_path_factory):
    """Exports of two models for OpenVINO."""
    folder = tmp_path_factory.mktemp("serving")
    for seed in (0, 1):
        shutil.copytree(small_export("openvino", seed), folder / f"model_{seed}")
    return folder


def point(models, name):
    """Let the link that is served point to another model, at once."""
    (models / "next").symlink_to(name)
    (models / "next").replace(models / "current")


def line(process, number=0):
    """Return a line that a server prints, as soon as it is there."""
    return wait_for(lambda: process.said().split("\n")[:-1][number : number + 1], process, seconds=60)[0]


def serve(model, *arguments):
    return preloaded().start(APP, model, "--port", 0, *arguments, folder=model.parent)


@contextmanager
def serving(model, *arguments):
    """The process that serves a model, and its address."""
    process = serve(model, *arguments)
    try:
        yield process, line(process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(30)


def test_pictures_texts_and_what_is_wrong_with_a_question_are_answered_while_the_model_is_replaced(models):
    point(models, "model_0")
    clips = {version: mobileclip.load(models / f"model_{version - 1}") for version in (1, 2)}
    expected = {version: {text: clip.encode_text(text)[0] for text in TEXTS} for version, clip in clips.items()}
    assert not torch.allclose(expected[1]["a cat"], expected[2]["a cat"], atol=1e-2)
    picture = bundled_samples().images[0]

    def ask(number):
        text = TEXTS[number % len(TEXTS)]
        said = asked(f"{address}/texts", json.dumps({"texts": [text]}).encode())
        found = torch.tensor(said["found"][0])
        torch.testing.assert_close(found, expected[said["version"]][text], rtol=0, atol=1e-5)
        return said["version"]

    with serving(models / "current", "--num-threads", 1) as (process, address), ThreadPoolExecutor(8) as pool:
        found = torch.tensor(asked(f"{address}/image", picture)["found"])
        torch.testing.assert_close(found, clips[1].encode_image(picture)[0], rtol=0, atol=1e-5)
        labels = asked(f"{address}/classify?label=a+cat&label=a+dog", picture)["found"]
        assert labels == pytest.approx(clips[1].classify(picture, ["a cat", "a dog"]), abs=1e-4)
        for path, data, status in (
            ("image", b"no picture", 400),
            ("classify", picture, 400),
            ("texts", b'{"texts": []}', 400),
            ("texts", b"[" * 10_000, 400),
            ("texts", b" " * (2**20 + 1), 413),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(f"{address}/{path}", data)
            refused.value.close()
            assert refused.value.code == status
        assert asked(f"{address}/health")["version"] == 1
        assert set(pool.map(ask, range(80))) == {1}
        point(models, "model_1")
        process.send_signal(signal.SIGHUP)
        versions = wait_for(lambda: 2 in (found := [*pool.map(ask, range(40))]) and found)
        assert set(versions) <= {1, 2}
        assert versions[-1] == 2
        # What is no model leaves the one that answers.
        point(models, "nothing")
        process.send_signal(signal.SIGHUP)
        assert "the model stays as it was" in line(process, 1)
        assert ask(0) == 2


def test_an_export_that_was_made_elsewhere_wants_trust(models, another_machine):
    refused = serve(models / "model_0")
    assert "was written on another machine" in refused.communicate(120)[1]
    assert refused.returncode != 0
    with serving(models / "model_0", "--trust") as (_, address):
        assert address.startswith("http://127.0.0.1:")


def test_the_application_of_the_page_answers():
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    with TestClient(names["application"]) as client:
        found = client.post("/texts", json={"texts": ["a cat", "a dog"]}).json()
    expected = mobileclip.load("icons").encode_text(["a cat", "a dog"])
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)

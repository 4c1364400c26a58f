"""Pushed to a stand-in of the hub by its real client, and fetched by this library, by open_clip and by timm."""

import json
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from tests.hub import hub_server


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def told(hub, tmp_path_factory):
    """What one process tells that pushes models and fetches them, through every library."""
    environment = hub.environment(tmp_path_factory.mktemp("hub"))
    command = [sys.executable, "-m", "tests.interop.round_trip"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return {**json.loads(last), "printed": printed}


def test_what_is_pushed_comes_back_to_the_bit(told):
    assert told["dual"]
    assert told["folded"]
    assert told["tower"]
    assert told["stored"] == "timm"


def test_the_cards_lines_load_it_in_open_clip_and_in_timm_with_equal_embeddings(told):
    assert max(told[f"open_clip {what}"] for what in ("image", "text")) < 1e-5
    assert told["open_clip scale"] == 0
    assert told["timm"] < 1e-5


def test_a_push_is_one_commit_that_leaves_nothing_of_a_model_before(told, hub):
    dual = hub.repositories["owner/dual"]
    assert dual.messages == ["initial commit", "first", "second"]
    assert told["url"] == f"{hub.url}/owner/dual/commit/{told['commit']}"
    assert sorted(dual.commits[told["commit"]]) == [
        ".gitattributes", "README.md", "open_clip_config.json", "open_clip_model.safetensors",
    ]  # fmt: skip
    assert sorted(dual.head()) == [".gitattributes", "README.md", "model.safetensors"]
    assert told["replaced"]
    assert ModelCard(dual.head()["README.md"].decode()).data.license == "mit"


def test_repositories_are_made_as_asked(told, hub):
    assert hub.repositories["owner/folded"].private
    assert not hub.repositories["owner/dual"].private
    tower = hub.repositories["owner/tower"]
    assert set(tower.branches) == {"main", "next"}
    commit = tower.branches["main"]
    assert told["printed"] == [
        f"pushed {hub.url}/owner/tower/commit/{commit}",
        f"this very model: hf-hub:owner/tower@{commit}",
    ]


def test_what_fails_is_said_in_a_line_and_changes_nothing(told, hub):
    said = {
        "no overwrite": "HubError: owner/dual holds README.md, open_clip_config.json, open_clip_model.safetensors alr",
        "public": "HubError: owner/dual is public, and was asked to be private",
        "licence": 'HubError: owner/other was not pushed: Invalid metadata in README.md. - "license" must be one of',
        "astray": "HubError: owner/astray was not pushed: ",
        "astray fetch": "CheckpointError: could not fetch 'hf-hub:owner/astray' from the hub",
        "reader": "see hf auth whoami",
        "nobody": "log in with: hf auth login",
        "digest": "is not the file that was expected",
        "hidden": "could not fetch",
    }
    for name, part in said.items():
        assert part in told[name], name
        assert "\n" not in told[name], name
    assert "owner/new" not in hub.repositories

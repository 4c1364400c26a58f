"""Pushed to a stand-in of the hub by its real client, and fetched by this library, by open_clip and by timm."""

import json

import pytest
from huggingface_hub import ModelCard

from tests.hub import hub_server
from tests.preloaded import preloaded


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


def told_by(hub, folder, what):
    """What a process tells that pushes models and fetches them, with the lines that it printed."""
    environment = hub.environment(folder)
    started = preloaded().start("-m", "tests.interop.round_trip", what, folder=folder, environment=environment)
    output, errors = started.communicate(300)
    assert started.returncode == 0, errors
    *printed, last = output.splitlines()
    return {**json.loads(last), "printed": printed}


@pytest.fixture(scope="module")
def told(hub, tmp_path_factory):
    return told_by(hub, tmp_path_factory.mktemp("hub"), "round trips")


def test_a_push_comes_back_to_the_bit_and_is_one_commit_that_leaves_nothing_of_a_model_before(told, hub):
    assert [told[one] for one in ("tower", "private", "text", "replaced", "stored")] == [True, True, True, True, "timm"]
    tower = hub.repositories["owner/tower"]
    assert tower.messages == ["initial commit", "first", "second"]
    assert told["url"] == f"{hub.url}/owner/tower/commit/{told['commit']}"
    first = tower.commits[told["commit"]]
    assert sorted(first) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert sorted(tower.head()) == [".gitattributes", "README.md", "model.safetensors"]
    assert ModelCard(tower.head()["README.md"].decode()).data.license == "mit"


def test_repositories_are_made_as_asked(told, hub):
    assert hub.repositories["owner/private"].private
    assert not hub.repositories["owner/tower"].private
    text = hub.repositories["owner/text"]
    assert set(text.branches) == {"main", "next"}
    assert ModelCard(text.head()["README.md"].decode()).data.base_model == "owner/tower"
    pushed, exact = told["printed"]
    assert pushed == f"pushed {hub.url}/owner/text/commit/{text.branches['main']}"
    assert exact == f"this exact revision: hf-hub:owner/text@{text.branches['main']}"


def test_what_fails_is_said_in_a_line_and_changes_nothing(told, hub):
    said = {
        "no overwrite": "HubError: owner/tower already contains README.md, config.json, model.safetensors",
        "public": "HubError: owner/tower is public",
        "licence": '"license" must be one of',
        "astray": "HubError: owner/astray was not pushed: ",
        "astray fetch": "CheckpointError: could not fetch 'hf-hub:owner/astray' from the hub",
        "reader": "check `hf auth whoami`",
        "nobody": "log in with: hf auth login",
        "digest": "is not the file that was expected",
        "hidden": "could not fetch",
    }
    for name, part in said.items():
        assert part in told[name], name
        assert "\n" not in told[name], name
    assert not {"owner/new", "owner/other"} & hub.repositories.keys()


@pytest.mark.slow
def test_the_cards_lines_load_it_in_open_clip_and_in_timm_with_equal_embeddings(hub, tmp_path):
    told = told_by(hub, tmp_path, "other libraries")
    assert max(told["image"], told["text"], told["timm"]) < 1e-5
    assert (told["scale"], told["folded"]) == (0, True)

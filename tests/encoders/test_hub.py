"""Names on the hub, through its real client, against a server of the hub's protocol on this machine."""

import hashlib
import re
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load

import mobileclip
from mobileclip import create_model_and_transforms
from mobileclip.blocks import models
from mobileclip.encoders import CheckpointError, ClassifierSpec, load_backbone, load_model, save_model
from mobileclip.encoders.checkpoints import (
    PRETRAINED,
    PUBLISHED,
    TAGS,
    licence_of,
    read_checkpoint,
    resolve_spec,
    tagged,
)
from tests.build.commands import run
from tests.encoders.small import SMALL, randomised
from tests.errors import fails, told
from tests.hub import Repository, hub_server
from tests.lazily import lazily

open_clip, timm = lazily("open_clip"), lazily("timm")
ONE = "hf-hub:owner/one"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, seed in (("model", 0), ("other", 1)):
        save_model(randomised(SMALL, seed=seed), folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in ("model", "other")]


@pytest.fixture
def files(checkpoints):
    """The contents of two checkpoints."""
    return [path.read_bytes() for path in checkpoints]


@pytest.fixture
def hub(files, monkeypatch, tmp_path):
    """A hub with one checkpoint in `owner/one`, two in `owner/two`, none in `owner/export`, and a published model."""
    one, other = files
    published = PUBLISHED["mobileclip2_b"]
    export = {"mobileclip.json": b'{"target": "onnx"}', "golden.safetensors": one, "evaluation.safetensors": one}
    with hub_server() as server:
        for name, content in {
            "owner/one": {"README.md": b"", "model.safetensors": one},
            "owner/two": {"a.safetensors": one, "b.safetensors": one},
            "owner/export": export,
            published.repository: {published.file: other},
        }.items():
            server.repositories[name] = Repository()
            server.repositories[name].commit(content)
        server.use(monkeypatch, tmp_path)
        yield server


def disconnect(hub, monkeypatch, folder):
    """Give this process's client of the hub the address of none, and return that address."""
    attrs.evolve(hub, url="http://127.0.0.1:1").use(monkeypatch, folder)
    return "http://127.0.0.1:1"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def assert_holds(address, data):
    """Assert that the tensors at an address are those of a file."""
    torch.testing.assert_close(dict(read_checkpoint(address).tensors), load(data), rtol=0, atol=0)


def cached(folder):
    """Return the one file in the cache of the hub's client."""
    (blob,) = (path for path in (folder / "cache").rglob("blobs/*") if path.is_file())
    return blob


@pytest.mark.usefixtures("hub")
def test_a_backbone_loads_by_its_name_on_the_hub_and_by_that_of_a_model(checkpoints):
    one, other = checkpoints
    for name, path in {ONE: one, "hf-hub:owner/two/b.safetensors": one, "mobileclip2_b": other}.items():
        tower = load_model(path, tower="image", fold=False)
        classifier = ClassifierSpec(image=tower.spec.without_projection(), num_classes=3).build()
        load_backbone(classifier, name)
        expected = tower.state_dict()
        assert all(torch.equal(expected[key], value) for key, value in classifier.image_encoder.state_dict().items())


@pytest.mark.usefixtures("hub")
def test_open_clip_s_tags_are_published_weights(checkpoints, monkeypatch):
    expected = load_model(checkpoints[1])
    monkeypatch.setattr(models, "_values", {**models._values, "mobileclip2_b": SMALL})  # smaller than the published one
    model, _, transform = create_model_and_transforms("MobileCLIP2-B", pretrained="dfndr2b")
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    assert transform.image_input == SMALL.image.input
    for name, tag, known in (
        ("MobileCLIP-B", "datacompdr", "'mobileclip_b'"),
        ("mobileclip_b", "datacompdr_lt", "'mobileclip_blt'"),
    ):
        with fails(CheckpointError, known):
            create_model_and_transforms(name, pretrained=tag)


def test_open_clip_has_no_other_tags_of_these_models():
    theirs = {(name, tag) for name, tag in open_clip.list_pretrained() if name.startswith("MobileCLIP")}
    found = {(name, tag): tagged(models.named(name), tag) for name, tag in theirs}
    assert {tag for _, tag in theirs} == set(TAGS)
    assert found["MobileCLIP-B", "datacompdr_lt"] == "mobileclip_blt"
    assert all(models.named(name) == found[name, tag] for name, tag in theirs if tag != "datacompdr_lt")
    for model, tag in (("mobileclip2_s2", "datacompdr"), ("mobileclip_s2", "dfndr2b"), ("icons", "datacompdr")):
        with fails(ValueError, model, tag):
            tagged(model, tag)


def test_what_cannot_be_fetched_says_what_to_do(hub, files, monkeypatch, tmp_path):
    hub.repositories["owner/one"].gated = True
    hub.use(monkeypatch, tmp_path, token=None)
    for address, *named in (
        ("owner/two", "several checkpoints"),
        ("owner/export", "owner/export", "'onnx'", "ONNX Runtime"),
        ("owner/none", "owner/none"),
        ("owner", "hf-hub:owner/name"),
        ("owner/one", f"{hub.url}/owner/one", "hf auth login", "HF_TOKEN"),
        ("owner/two/a.safetensors@v2", "v2", f"{hub.url}/owner/two/commits/main"),
    ):
        with fails(CheckpointError, *named):
            read_checkpoint(f"hf-hub:{address}")
    hub.use(monkeypatch, tmp_path)
    assert_holds(ONE, files[0])


def test_without_a_connection_a_command_says_once_what_to_do(hub, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (64, 64)).save("photos/photo.png")
    url = disconnect(hub, monkeypatch, tmp_path)
    for arguments in (
        ("classify", "photos/photo.png", "a cat", "a dog", "-m", "mobileclip_s0"),
        ("index", "photos", "--index", "photos.index"),
        ("embed", "photos", "-m", "MobileCLIP-B (LT)", "-o", "photos.npz"),
    ):
        status, output, errors = run(capsys, *arguments)
        (line,) = errors.splitlines()
        assert (status, output) == (2, "")
        told(line, "could not fetch", "-m icons", "=FILE", f"{url}/apple/MobileCLIP")
    assert not Path("photos.index").exists()


SPELLINGS = {
    "MobileCLIP-S0": "mobileclip_s0",
    "MobileCLIP-B (LT)": "mobileclip_blt",
    "apple/MobileCLIP-B-LT": "mobileclip_blt",
    "apple/MobileCLIP-S1-OpenCLIP": "mobileclip_s1",
    "MobileCLIP2-S0": "mobileclip2_s0",
    "timm/MobileCLIP2-L-14-OpenCLIP": "mobileclip2_l14",
}


def test_published_weights_are_found_by_each_of_their_names(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelled, name in SPELLINGS.items():
        assert PRETRAINED[spelled] == PUBLISHED[name].address
        assert resolve_spec(spelled) == resolve_spec(name)
        Path(spelled).mkdir(parents=True)
        Path(spelled, "model.safetensors").symlink_to(checkpoints[0])
        assert mobileclip.load(spelled).model.spec == SMALL  # a folder that is called so


def test_models_of_the_published_table_are_found_by_their_titles():
    titles = re.findall(r"^\| (MobileCLIP[^|]+) \|", Path("docs/using.md").read_text(), re.MULTILINE)
    assert sorted(PRETRAINED[title] for title in titles) == sorted(PRETRAINED.values())


def test_open_clip_s_and_timm_s_names_work_or_say_which_model_it_is():
    assert {name for name, tag in open_clip.list_pretrained() if tag in TAGS} <= PRETRAINED.keys()
    towers = [name for name in timm.list_models(pretrained=True) if ".apple_mclip" in name]
    assert len(towers) == 11
    for name in towers:
        with fails(ValueError, "mobileclip"):
            mobileclip.load(f"timm/{name}")
    with fails(ValueError, "'mobileclip2_s"):
        mobileclip.load("MobileCLIP2-S9")


def test_the_newest_commit_comes_unless_a_revision_or_a_digest_is_named(hub, files):
    repository = hub.repositories["owner/one"]
    first = repository.branches["main"]
    assert_holds(ONE, files[0])
    repository.commit({"model.safetensors": files[1]})
    assert_holds(f"{ONE}@{first}#sha256={sha256(files[0])}", files[0])
    with fails(CheckpointError, "0" * 64) as caught:
        read_checkpoint(f"{ONE}#sha256={'0' * 64}")
    assert caught.value.code == "digest"
    assert_holds(ONE, files[1])


@pytest.mark.parametrize("how", ["newest", "pinned"])
def test_a_damaged_file_in_the_cache_is_fetched_once_more(how, hub, files, caplog, tmp_path):
    repository = hub.repositories["owner/one"]
    commit = repository.branches["main"]
    address = f"{ONE}@{commit}#sha256={sha256(files[0])}" if how == "pinned" else ONE
    assert_holds(address, files[0])
    blob = cached(tmp_path)
    blob.write_bytes(files[0][: len(files[0]) // 2])
    assert_holds(address, files[0])
    assert blob.read_bytes() == files[0]
    assert_holds(address, files[0])
    (message,) = caplog.messages
    told(message, f"{blob} is damaged")
    # What the hub itself has is damaged, or another file: it is fetched no second time, and refused.
    blob.write_bytes(b"half")
    repository.commits[commit]["model.safetensors"] = files[1]
    hub.requests.clear()
    with fails(CheckpointError) as caught:
        read_checkpoint(address)
    assert any(str(path) in str(caught.value) for path in (tmp_path / "cache").rglob("blobs/*"))
    assert [method for method, path in hub.requests if path.endswith("model.safetensors")].count("GET") == 1


def test_without_a_connection_a_damaged_file_is_named(hub, files, monkeypatch, tmp_path):
    address = f"{ONE}/model.safetensors#sha256={sha256(files[0])}"
    assert_holds(address, files[0])
    blob = cached(tmp_path)
    blob.write_bytes(files[1])
    disconnect(hub, monkeypatch, tmp_path)
    with fails(CheckpointError, f"{blob} is damaged", "connection"):
        read_checkpoint(address)


@pytest.mark.usefixtures("hub")
def test_a_known_digest_outlives_its_revision(files, caplog):
    """The hub's history was rewritten: the newest file is taken where it is the one that was meant, and no other."""
    gone, digest = "0" * 40, sha256(files[0])
    assert_holds(f"{ONE}/model.safetensors@{gone}#sha256={digest}", files[0])
    told(caplog.text, "owner/one", gone)
    for name, end, code in (
        ("one", f"#sha256={'1' * 64}", "digest"),
        ("one", "", "not_fetched"),
        ("none", f"#sha256={digest}", "not_fetched"),
    ):
        with fails(CheckpointError) as caught:
            read_checkpoint(f"hf-hub:owner/{name}/model.safetensors@{gone}{end}")
        assert caught.value.code == code


def test_published_weights_are_addresses(monkeypatch):
    """The hub's client is asked for the file and the revision, once, and what comes must have the digest.

    Apple's weights were under its sample code licence until February 2025, and are under its model licence since.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def away(repository, file, *, revision, **_):
        asked.append((repository, file, revision))
        raise LocalEntryNotFoundError("no connection")  # as the client says it: nothing is said of the revision

    monkeypatch.setattr("huggingface_hub.hf_hub_download", away)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: Mock(spec_set=["head"]))  # there is a connection
    for name, published in PUBLISHED.items():
        with fails(CheckpointError, published.file):
            load_model(PRETRAINED[name])
        assert asked == [(published.repository, published.file, published.revision)]
        asked.clear()
        early = name in {"mobileclip_s0", "mobileclip_s1", "mobileclip_s2", "mobileclip_blt"}
        assert published.licence == ("apple-ascl" if early else "apple-amlr")
        assert f"for research only ({published.licence})" in licence_of(PRETRAINED[name])
        assert PRETRAINED[name].partition("#sha256=")[2] == (published.sha256 or "")
    assert "apple" not in licence_of("hf-hub:owner/name")
    assert {"mobileclip_s0", "mobileclip_b", "mobileclip_blt", "mobileclip2_s0", "mobileclip2_s3"} <= {
        name for name, published in PUBLISHED.items() if published.sha256 and len(published.revision or "") == 40
    }

"""Names on the hub, through its real client, against a server of the hub's protocol on this machine."""

import hashlib
import json
import re
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest
from PIL import Image

from mobileclip import load
from mobileclip.blocks import models
from mobileclip.encoders import CheckpointError, load_model, save_model
from mobileclip.encoders.checkpoints import PRETRAINED, PUBLISHED, TAGS, licence_of, resolve_spec, tagged
from tests.encoders.small import SMALL, randomised
from tests.errors import fails
from tests.hub import OWNER, Repository, hub_server
from tests.lazily import lazily
from tests.preloaded import preloaded

open_clip, timm = lazily("open_clip"), lazily("timm")


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
def hub(files):
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
        yield server


def run(hub, folder, code, *arguments, token=OWNER):
    """Run code in a process whose hub this is; return its status, and what it said on both streams."""
    started = preloaded().start("-c", code, *arguments, folder=folder, environment=hub.environment(folder, token))
    output, errors = started.communicate(120)
    return started.returncode, output, errors


def test_a_backbone_loads_by_its_name_on_the_hub_and_by_that_of_a_model(hub, checkpoints, tmp_path):
    code = """
import sys, torch
from mobileclip.encoders import ClassifierSpec, load_backbone, load_model
one, other = sys.argv[1:]
names = {"hf-hub:owner/one": one, "hf-hub:owner/two/b.safetensors": one, "mobileclip2_b": other}
for name, path in names.items():
    tower = load_model(path, tower="image", fold=False)
    classifier = ClassifierSpec(image=tower.spec.without_projection(), num_classes=3).build()
    load_backbone(classifier, name)
    expected = tower.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in classifier.image_encoder.state_dict().items()), name
"""
    status, _, errors = run(hub, tmp_path, code, *map(str, checkpoints))
    assert status == 0, errors


def test_open_clip_s_tags_are_published_weights(hub, checkpoints, tmp_path):
    code = """
import sys, torch
from mobileclip import create_model_and_transforms
from mobileclip.blocks import models
from mobileclip.encoders import CheckpointError, load_model
expected = load_model(sys.argv[1])
models.add("mobileclip2_b", expected.spec, replace=True)  # smaller than the published one
model, _, transform = create_model_and_transforms("MobileCLIP2-B", pretrained="dfndr2b")
assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())
assert transform.image_input == expected.spec.image.input
for name, tag in (("MobileCLIP-B", "datacompdr"), ("mobileclip_b", "datacompdr_lt")):
    try:
        create_model_and_transforms(name, pretrained=tag)
    except CheckpointError as error:
        print(error)
"""
    status, output, errors = run(hub, tmp_path, code, str(checkpoints[1]))
    assert status == 0, errors
    first, second = output.splitlines()
    assert "'mobileclip_b'" in first
    assert "'mobileclip_blt'" in second


def test_open_clip_has_no_other_tags_of_these_models():
    theirs = {(name, tag) for name, tag in open_clip.list_pretrained() if name.startswith("MobileCLIP")}
    found = {(name, tag): tagged(models.named(name), tag) for name, tag in theirs}
    assert {tag for _, tag in theirs} == set(TAGS)
    assert found["MobileCLIP-B", "datacompdr_lt"] == "mobileclip_blt"
    assert all(models.named(name) == found[name, tag] for name, tag in theirs if tag != "datacompdr_lt")
    for model, tag in (("mobileclip2_s2", "datacompdr"), ("mobileclip_s2", "dfndr2b"), ("icons", "datacompdr")):
        with fails(ValueError, model, tag):
            tagged(model, tag)


def test_what_cannot_be_fetched_says_what_to_do(hub, tmp_path):
    said = {
        "hf-hub:owner/two": "holds several checkpoints",
        "hf-hub:owner/export": "owner/export is an export for the target 'onnx', which ONNX Runtime runs",
        "hf-hub:owner/none": "could not fetch",
        "hf-hub:owner": "write hf-hub:owner/name",
    }
    found = outcomes(hub, tmp_path, [["info", name] for name in said])
    assert [status for status, _ in found] == [2] * len(said)
    for message, (_, errors) in zip(said.values(), found, strict=True):
        assert message in errors


def test_without_a_connection_a_command_says_once_what_to_do(hub, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "photo.png")
    code = "import sys; from mobileclip.cli import main; main(sys.argv[1:])"
    away = attrs.evolve(hub, url="http://127.0.0.1:1")
    for arguments in (
        ("classify", "photos/photo.png", "a cat", "a dog", "-m", "mobileclip_s0"),
        ("index", "photos", "--index", "photos.index"),
        ("embed", "photos", "-m", "MobileCLIP-B (LT)", "-o", "photos.npz"),
    ):
        status, output, errors = run(away, tmp_path, code, *arguments)
        (line,) = errors.splitlines()
        assert (status, output) == (2, "")
        assert all(part in line for part in ("could not fetch", "-m icons", "=FILE", f"{away.url}/apple/MobileCLIP"))
    assert not (tmp_path / "photos.index").exists()


SPELLINGS = {
    "MobileCLIP-S0": "mobileclip_s0",
    "MobileCLIP-B (LT)": "mobileclip_blt",
    "apple/MobileCLIP-B-LT": "mobileclip_blt",
    "apple/MobileCLIP-S1-OpenCLIP": "mobileclip_s1",
    "MobileCLIP2-S0": "mobileclip2_s0",
    "timm/MobileCLIP2-L-14-OpenCLIP": "mobileclip2_l14",
}


@pytest.mark.parametrize(("spelled", "name"), SPELLINGS.items())
def test_published_weights_are_found_by_each_of_their_names(spelled, name, tmp_path, monkeypatch):
    assert PRETRAINED[spelled] == PUBLISHED[name].address
    assert resolve_spec(spelled) == resolve_spec(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / spelled).mkdir(parents=True)
    save_model(randomised(SMALL), tmp_path / spelled / "model.safetensors")
    assert load(spelled).model.spec == SMALL  # a folder that is called so


def test_models_of_the_published_table_are_found_by_their_titles():
    titles = re.findall(r"^\| (MobileCLIP[^|]+) \|", Path("docs/using.md").read_text(), re.MULTILINE)
    assert sorted(PRETRAINED[title] for title in titles) == sorted(PRETRAINED.values())


def test_open_clip_s_and_timm_s_names_work_or_say_which_model_it_is():
    assert {name for name, tag in open_clip.list_pretrained() if tag in TAGS} <= PRETRAINED.keys()
    towers = [name for name in timm.list_models(pretrained=True) if ".apple_mclip" in name]
    assert len(towers) == 11
    for name in towers:
        with fails(ValueError, "mobileclip"):
            load(f"timm/{name}")
    with fails(ValueError, "'mobileclip2_s"):
        load("MobileCLIP2-S9")


STEPS = """
import json, shutil, sys
from huggingface_hub import HfApi
from mobileclip.cli import main
for step, *arguments in json.loads(sys.argv[1]):
    if step == "copy":
        shutil.copyfile(*arguments)
        continue
    if step == "upload":
        HfApi().upload_file(path_or_fileobj=arguments[0], path_in_repo=arguments[1], repo_id=arguments[2])
        continue
    status = 0
    try:
        main(["info", *arguments])
    except SystemExit as stop:
        status = stop.code
    print(f"status {status}", file=sys.stderr)
"""


def outcomes(hub, folder, steps, **options):
    """What `mobileclip info` says of each address among `steps`, in one process: its status and its errors."""
    _, _, errors = run(hub, folder, STEPS, json.dumps(steps), **options)
    said = errors.split("status ")
    return [
        (int(after.split("\n")[0]), before.partition("\n")[2])
        for before, after in zip(["\n" + said[0], *said[1:-1]], said[1:], strict=True)
    ]


def test_the_newest_commit_comes_unless_a_revision_or_a_digest_is_named(hub, files, checkpoints, tmp_path):
    repository = hub.repositories["owner/one"]
    first, digest = repository.branches["main"], hashlib.sha256(files[0]).hexdigest()
    steps = [
        ["info", "hf-hub:owner/one"],
        ["upload", str(checkpoints[1]), "model.safetensors", "owner/one"],
        ["info", f"hf-hub:owner/one@{first}#sha256={digest}"],
        ["info", f"hf-hub:owner/one#sha256={'0' * 64}"],
    ]
    newest, pinned, wrong = outcomes(hub, tmp_path, steps)
    assert newest[0] == pinned[0] == 0
    assert wrong[0] == 2
    assert "is not the file that was expected" in wrong[1]
    assert outcomes(hub, tmp_path, steps[:1]) == [(0, "")]
    assert list((tmp_path / "cache").rglob(f"*{repository.branches['main']}*/model.safetensors"))


@pytest.mark.parametrize("how", ["newest", "pinned"])
def test_a_damaged_file_in_the_cache_is_fetched_once_more(how, hub, files, tmp_path):
    repository = hub.repositories["owner/one"]
    commit, digest = repository.branches["main"], hashlib.sha256(files[0]).hexdigest()
    address = f"hf-hub:owner/one@{commit}#sha256={digest}" if how == "pinned" else "hf-hub:owner/one"
    assert outcomes(hub, tmp_path, [["info", address]]) == [(0, "")]
    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file())
    (tmp_path / "half").write_bytes(files[0][: len(files[0]) // 2])
    damage = ["copy", str(tmp_path / "half"), str(blob)]
    repaired, after = outcomes(hub, tmp_path, [damage, ["info", address], ["info", address]])
    assert (repaired[0], after) == (0, (0, ""))
    assert f"{blob} is damaged" in repaired[1]
    assert blob.read_bytes() == files[0]
    # What the hub itself has is damaged, or another file: it is fetched no second time, and refused.
    repository.commits[commit]["model.safetensors"] = files[1]
    hub.requests.clear()
    ((status, said),) = outcomes(hub, tmp_path, [damage, ["info", address]])
    assert status == 2
    assert any(str(path) in said for path in (tmp_path / "cache").rglob("blobs/*")), said
    assert [method for method, path in hub.requests if path.endswith("model.safetensors")].count("GET") == 1


def test_without_a_connection_a_damaged_file_is_named(hub, files, checkpoints, tmp_path):
    address = f"hf-hub:owner/one/model.safetensors#sha256={hashlib.sha256(files[0]).hexdigest()}"
    assert outcomes(hub, tmp_path, [["info", address]]) == [(0, "")]
    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file())
    steps = [["copy", str(checkpoints[1]), str(blob)], ["info", address]]
    ((status, said),) = outcomes(attrs.evolve(hub, url="http://127.0.0.1:1"), tmp_path, steps)
    assert status == 2
    assert re.search(f"{blob} is damaged; could not fetch .*check .* the connection", said)


def test_a_gated_repository_and_a_missing_revision_say_what_to_do(hub, tmp_path):
    hub.repositories["owner/one"].gated = True
    steps = [["info", "hf-hub:owner/one"], ["info", "hf-hub:owner/two/a.safetensors@v2"]]
    gated, missing = outcomes(hub, tmp_path, steps, token=None)
    assert gated[0] == missing[0] == 2
    assert all(part in gated[1] for part in (f"{hub.url}/owner/one", "hf auth login", "HF_TOKEN"))
    assert all(part in missing[1] for part in ("no revision v2", f"{hub.url}/owner/two/commits/main"))
    assert outcomes(hub, tmp_path, steps[:1]) == [(0, "")]


def test_a_known_digest_outlives_its_revision(hub, files, tmp_path):
    """The hub's history was rewritten: the newest file is taken where it is the one that was meant, and no other."""
    gone, digest = "0" * 40, hashlib.sha256(files[0]).hexdigest()
    asked = [("one", f"#sha256={digest}"), ("one", f"#sha256={'1' * 64}"), ("one", ""), ("none", f"#sha256={digest}")]
    steps = [["info", f"hf-hub:owner/{name}/model.safetensors@{gone}{end}"] for name, end in asked]
    taken, other, unknown, nowhere = outcomes(hub, tmp_path, steps)
    assert taken[0] == 0
    assert f"owner/one no longer has the revision {gone}" in taken[1]
    assert [other[0], unknown[0], nowhere[0]] == [2, 2, 2]
    assert "is not the file that was expected" in other[1]
    assert all("could not fetch" in one[1] for one in (unknown, nowhere))


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

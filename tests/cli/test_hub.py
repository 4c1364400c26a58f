"""`mobileclip hub`, run as people run it; what it pushes is tested where the hub is."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import metadata_load

import mobileclip
from mobileclip.encoders import checkpoints
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.evaluation import DatasetResult, open_candidate, write_results
from mobileclip.extras import install
from mobileclip.interop import from_pretrained
from tests.build.commands import IMAGES, refused, run, worked
from tests.datasets.test_opening import class_folder


def test_a_file_becomes_a_folder_with_its_numbers(capsys, small_file, tmp_path):
    results, folder = tmp_path / "results.jsonl", tmp_path / "model"
    write_results(results, [DatasetResult(key="cars", dataset="Cars", metrics={"main_metric": 0.25, "acc1": 0.25})])
    options = ("--license", "mit", "--repository", "me/small", "--results", results)
    out = worked(capsys, "hub", "save", small_file, "-o", folder, *options)
    assert out == f"wrote {folder}: README.md, model.safetensors\n"
    data = metadata_load(folder / "README.md")
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "acc1", "value": 0.25}]
    assert 'from_pretrained("me/small")' in (folder / "README.md").read_text(encoding="utf-8")
    stored = read_checkpoint(small_file)
    loaded = from_pretrained(folder, fold=False)
    assert loaded.spec == stored.spec
    state = loaded.state_dict()
    # The logit scale has one dimension, and none in files.
    assert all(torch.equal(state[name].reshape(tensor.shape), tensor) for name, tensor in stored.tensors.items())


def test_the_card_names_the_base_model_that_was_said_or_the_source_on_the_hub(
    capsys, monkeypatch, small_file, tmp_path
):
    def saved(source, *options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        worked(capsys, "hub", "save", source, "-o", folder, "--license", "mit", *options)
        return metadata_load(folder / "README.md").get("base_model")

    assert saved(small_file) is None
    assert saved(small_file, "--base-model", "apple/MobileCLIP-S2") == "apple/MobileCLIP-S2"
    fetched = read_checkpoint(small_file)
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda *_, **__: fetched)
    assert saved("hf-hub:me/small@main") == "me/small"
    assert saved("hf-hub:me/small", "--base-model", "me/other") == "me/other"
    assert saved("hf-hub:me/small", "--repository", "me/small") is None


def test_a_folder_stands_for_its_weights_wherever_a_checkpoint_is_named(capsys, monkeypatch, small_file, tmp_path):
    labels = (Path(IMAGES, "coffee.png").resolve(), "a cat", "a cup of coffee", "--json")
    monkeypatch.chdir(tmp_path)
    worked(capsys, "hub", "save", small_file, "-o", "model", "--license", "mit")
    of_file = run(capsys, "classify", *labels, "-m", small_file)
    assert of_file[0] == 0
    assert run(capsys, "classify", *labels, "-m", "model") == of_file
    assert json.loads(worked(capsys, "info", "model"))["checkpoint"] == "model"
    worked(capsys, "convert", "model", "-o", "small.safetensors")
    assert mobileclip.load("model").model.spec == mobileclip.load("small.safetensors").model.spec
    assert [one.name for one in map(open_candidate, ["model", "label=model"])] == ["model", "label"]
    data = class_folder(tmp_path).relative_to(tmp_path)
    export = shutil.copytree(Path(__file__).parents[1] / "golden" / "litert" / "export", "export")
    status, _, err = run(capsys, "eval", "model", data, export)
    assert (status, len(list(Path("outputs").rglob("results.jsonl")))) == (1, 1)
    assert f"not evaluated: {export}: " in err
    refused(capsys, "is also the output", "convert", "model", "-o", "model/model.safetensors", "--overwrite")
    shutil.copy("small.safetensors", "model/other.safetensors")
    refused(capsys, "model holds several checkpoints", "classify", *labels, "-m", "model")
    (tmp_path / "mobileclip_s0").mkdir()
    assert json.loads(worked(capsys, "info", "mobileclip_s0"))["name"] == "mobileclip_s0", "a model of this library"


def test_one_tower_folded(capsys, small_file, tmp_path):
    given = ("hub", "save", small_file, "-o", tmp_path / "model", "--license", "mit")
    worked(capsys, *given, "--tower", "image", "--fold")
    stored = read_checkpoint(tmp_path / "model" / "model.safetensors")
    assert (stored.form, stored.spec) == ("folded", read_checkpoint(small_file).spec.image)


def test_the_client_is_needed_to_push_alone(capsys, monkeypatch, small_file, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    err = refused(capsys, "huggingface_hub", "hub", "push", small_file, "me/small", "--license", "mit")
    assert err.endswith(f"needs huggingface_hub: `{install('hub')}`\n")
    worked(capsys, "hub", "save", small_file, "-o", tmp_path / "model", "--license", "mit")
    assert from_pretrained(tmp_path / "model", fold=False).spec == read_checkpoint(small_file).spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("save", "a.pt", "-o", "new"), "--license"),
        (("save", "a.pt", "-o", "new", "--license", "GPL 3"), "the licence is 'GPL 3'"),
        (("save", "a.pt", "-o", "new", "--license", "mit", "--repository", "me"), "expected owner/name"),
        (("save", "a.pt", "-o", "kept", "--license", "mit"), "kept already exists"),
        (("save", "a.pt", "-o", "kept", "--license", "mit", "--overwrite"), "is not replaced"),
        (("save", "a.pt", "-o", "new", "--license", "mit", "--results", "lost.jsonl"), "there is no lost.jsonl"),
        (("save", "lost.pt", "-o", "new", "--license", "mit"), "there is no lost.pt; expected a checkpoint"),
        (("push", "a.pt", "me", "--license", "mit"), "expected owner/name"),
        (("push", "lost.pt", "me/model", "--license", "mit"), "there is no lost.pt; expected a checkpoint"),
    ],
)
def test_arguments_are_looked_at_before_a_model_is_read(capsys, monkeypatch, tmp_path, arguments, message):
    read = "mobileclip.encoders.checkpoints.read_checkpoint"
    monkeypatch.setattr(read, lambda *_, **__: pytest.fail("a model was read before the arguments were looked at"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"weights")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    status, out, err = run(capsys, "hub", *arguments)
    assert status == 2
    assert message in " ".join((out + err).split())
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]

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
from tests.errors import told


@pytest.fixture
def save(capsys, small_file, tmp_path):
    """What saves a model into the folder `model`, and returns what it prints."""
    given = ("-o", tmp_path / "model", "--license", "mit")
    return lambda *options, source=small_file: worked(capsys, "hub", "save", source, *given, *options)


def test_a_file_becomes_a_folder_with_its_numbers(save, small_file, tmp_path):
    results, folder = tmp_path / "results.jsonl", tmp_path / "model"
    write_results(results, [DatasetResult(key="cars", dataset="Cars", metrics={"main_metric": 0.25, "acc1": 0.25})])
    out = save("--repository", "me/small", "--results", results)
    assert out == f"wrote {folder}: README.md, model.safetensors\n"
    data = metadata_load(folder / "README.md")
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "acc1", "value": 0.25}]
    assert 'from_pretrained("me/small")' in (folder / "README.md").read_text(encoding="utf-8")
    stored, loaded = read_checkpoint(small_file), from_pretrained(folder, fold=False)
    assert loaded.spec == stored.spec
    state = loaded.state_dict()
    # The logit scale has one dimension, and none in files.
    assert all(torch.equal(state[name].reshape(tensor.shape), tensor) for name, tensor in stored.tensors.items())
    save("--tower", "image", "--fold", "--overwrite")
    tower = read_checkpoint(folder / "model.safetensors")
    assert (tower.form, tower.spec) == ("folded", stored.spec.image)


def test_the_card_names_the_base_model_that_was_said_or_the_source_on_the_hub(monkeypatch, small_file, save, tmp_path):
    def base_model(source, *options):
        save(*options, "--overwrite", source=source)
        return metadata_load(tmp_path / "model" / "README.md").get("base_model")

    fetched, other = read_checkpoint(small_file), ("--base-model", "me/other")
    assert (base_model(small_file), base_model(small_file, *other)) == (None, "me/other")
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda *_, **__: fetched)
    assert (base_model("hf-hub:me/small@main"), base_model("hf-hub:me/small", *other)) == ("me/small", "me/other")
    assert base_model("hf-hub:me/small", "--repository", "me/small") is None


def test_a_folder_stands_for_its_weights_where_a_checkpoint_is_named(capsys, monkeypatch, small_file, save, tmp_path):
    labels = (Path(IMAGES, "coffee.png").resolve(), "a cat", "a cup of coffee", "--json")
    monkeypatch.chdir(tmp_path)
    save()
    assert worked(capsys, "classify", *labels, "-m", "model") == worked(capsys, "classify", *labels, "-m", small_file)
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
    Path("mobileclip_s0").mkdir()
    assert json.loads(worked(capsys, "info", "mobileclip_s0"))["name"] == "mobileclip_s0", "a model of this library"


def test_the_client_is_needed_to_push_alone(capsys, monkeypatch, small_file, save):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    err = refused(capsys, "huggingface_hub", "hub", "push", small_file, "me/small", "--license", "mit")
    assert err.endswith(f"needs huggingface_hub: `{install('hub')}`\n")
    assert save()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("save a.pt -o new", "--license"),
        ("save a.pt -o new --license GPL-x", "the licence is 'GPL-x'"),
        ("save a.pt -o new --license mit --repository me", "expected owner/name"),
        ("save a.pt -o kept --license mit", "kept already exists"),
        ("save a.pt -o kept --license mit --overwrite", "model.safetensors"),
        ("save a.pt -o new --license mit --results lost.jsonl", "there is no lost.jsonl"),
        ("save lost.pt -o new --license mit", "there is no lost.pt; expected a checkpoint"),
        ("push a.pt me --license mit", "expected owner/name"),
        ("push lost.pt me/model --license mit", "there is no lost.pt; expected a checkpoint"),
    ],
)
def test_arguments_are_looked_at_before_a_model_is_read(capsys, monkeypatch, tmp_path, line, message):
    read = "mobileclip.encoders.checkpoints.read_checkpoint"
    monkeypatch.setattr(read, lambda *_, **__: pytest.fail("a model was read before the arguments were looked at"))
    monkeypatch.chdir(tmp_path)
    Path("kept").mkdir()
    for name in ("a.pt", "kept/notes.txt"):
        Path(name).write_text("mine")
    status, out, err = run(capsys, "hub", *line.split())
    assert status == 2
    told(out + err, message)
    assert [path.name for path in Path("kept").iterdir()] == ["notes.txt"]

"""The classifiers' recipe: its published choices, and small runs of it on drawn shapes and on a person's own data."""

import math

import attrs
import pytest
import torch

from mobileclip.encoders import Classifier, ClassifierSpec, load_model, save_model
from mobileclip.encoders.checkpoints import skeleton
from mobileclip.recipes.tiny import SHAPES
from mobileclip.serialization import to_json
from mobileclip.training import read_metrics
from recipes import train_imagenet_mci as recipe
from tests.data.made_samples import encoded, write_raw
from tests.recipes.running import run_named, shown_run

SMALL = ["--data.image.size", "64", "--data.augmentation.size", "64"]


MCI0 = "train_imagenet_mci mci0"


@pytest.mark.parametrize(
    ("row", "millions"),
    [
        ("mci0", 11.8),
        pytest.param("mci1", 21.9, marks=pytest.mark.slow),
        pytest.param("mci2", 36.3, marks=pytest.mark.slow),
    ],
)
def test_classifiers_have_the_published_number_of_parameters(row, millions):
    """Table 11 counts the pooled features' linear layer in, folded, and no projection in front of it."""
    spec = recipe.ROWS[row].model
    assert sum(p.numel() for p in skeleton(spec, "folded").parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_choices_are_flags_and_come_back(capsys, tmp_path):
    spec = shown_run(capsys, MCI0, *SMALL, "--data", "a.tar", "--training.loss.label-smoothing", "0.2")
    assert spec.model.image.input.size == spec.data.image.size == spec.data.augmentation.size == 64
    assert spec.training.loss.label_smoothing == 0.2
    (tmp_path / "run.json").write_text(to_json(spec))
    assert shown_run(capsys, MCI0, tmp_path / "run.json") == spec
    assert shown_run(capsys, MCI0, "--data.image.size", "64").data.augmentation.size == 64
    ten = shown_run(capsys, MCI0, "--data.num-classes", "10")
    assert ten.model.num_classes == ten.data.num_classes == 10


def test_a_tiny_run_on_drawn_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = recipe.ROWS["mci0"]
    image = run.model.image
    stages = tuple(attrs.evolve(stage, dim=stage.dim // 8) for stage in image.stages)
    image = attrs.evolve(image, stages=stages, embedding_dim=image.embedding_dim // 8)
    run = attrs.evolve(run, model=attrs.evolve(run.model, image=image))
    (tmp_path / "narrow.json").write_text(to_json(run))
    run_named(MCI0, "narrow.json", "--tiny", *SMALL)
    assert "load_model" in capsys.readouterr().out
    whole = tmp_path / "outputs" / "train_imagenet_mci-mci0-tiny"
    model = load_model(whole / "model.safetensors")
    assert isinstance(model, Classifier)
    assert model.spec.class_names == tuple(sorted(SHAPES))
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [0, 1]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert (whole / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_on_shards_of_one_s_own_from_a_model_of_one_s_own(tmp_path, monkeypatch):
    """Numbers in `.cls` are called as `classnames.txt` says; with weights to start from, the model is whole."""
    monkeypatch.chdir(tmp_path)
    members = {f"{number:02d}": {"png": encoded(20, 20, number), "cls": b"%d" % (number % 3)} for number in range(24)}
    write_raw(tmp_path / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat")
    image = recipe.ROWS["mci0"].model.image
    image = attrs.evolve(image, input=attrs.evolve(image.input, size=64), drop_path=0.0)
    torch.manual_seed(0)
    start = ClassifierSpec(image=image, num_classes=7).build().eval()
    save_model(start, tmp_path / "start.safetensors")
    flags = ["--tiny", *SMALL, "--data", "0.tar", "--validation", "0.tar", "--initial-weights", "start.safetensors"]
    run_named(MCI0, *flags, "--output", "out", "--training.schedule.peak", "1e-9")
    model = load_model("out/model.safetensors", fold=False)
    assert model.spec.class_names == ("ant", "bee", "cat")
    assert model.spec.image.drop_path == 0.1
    for name, parameter in model.image_encoder.named_parameters():
        torch.testing.assert_close(parameter, start.image_encoder.get_parameter(name), rtol=0, atol=1e-6)
    assert any(name.endswith("acc1") for line in read_metrics(tmp_path / "out" / "metrics.jsonl") for name in line)

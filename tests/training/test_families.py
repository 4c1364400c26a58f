"""Models and data that a run did not know: in its JSON, trained, gone on with, and read back."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mobileclip.data import ReinforcedPipelineSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.recipes import run_recipe
from mobileclip.serialization import from_json, to_json
from mobileclip.training import RunSpec, World, build_objective, pipelines, run, students
from tests.errors import fails
from tests.training import class_runs
from tests.training.class_runs import class_batch
from tests.training.runs import MODEL, Batches, batch_of, training_spec


@attrs.frozen(kw_only=True)
class DrawnSpec:
    """Data that are drawn and lie nowhere."""

    batch_size: int = 8
    first: int = 0

    def build(self):
        return Batches(make=lambda step: batch_of(self.first + step, self.batch_size))


@attrs.frozen(kw_only=True)
class ImageSpec:
    input: ImageInput = ImageInput(size=16)


@attrs.frozen(kw_only=True)
class PlainSpec:
    """A model of two linear towers."""

    width: int = 16
    image: ImageSpec = attrs.field(factory=ImageSpec)

    def build(self):
        return Plain(self)


@attrs.frozen(kw_only=True)
class PlainClassifierSpec(PlainSpec):
    """A model of one linear layer."""

    num_classes: int = 8

    def build(self):
        layer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, self.num_classes))
        layer.spec = self
        return layer


@attrs.frozen(kw_only=True)
class DrawnClassesSpec(DrawnSpec):
    """Drawn pictures of classes."""

    num_classes: int = 8

    def build(self):
        return Batches(make=lambda step: class_batch(self.first + step, self.batch_size))


class Plain(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, spec.width))
        self.text_encoder = nn.EmbeddingBag(40, spec.width)
        self.encode_image, self.encode_text = self.image_encoder.forward, self.text_encoder.forward
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))


KINDS = {
    "plain": PlainSpec,
    "drawn": DrawnSpec,
    "plain classes": PlainClassifierSpec,
    "drawn classes": DrawnClassesSpec,
}


@pytest.fixture(params=["by module", "registered"])
def kind_of(request, monkeypatch):
    """From a spec to what JSON calls its class."""
    if request.param == "by module":
        return lambda spec: f"{__name__}:{type(spec).__name__}"
    for name, cls in KINDS.items():
        monkeypatch.setitem((students if hasattr(cls, "image") else pipelines)._values, name, cls)
    return lambda spec: next(name for name, cls in KINDS.items() if type(spec) is cls)


@pytest.mark.parametrize(
    ("model", "data", "training"),
    [
        (PlainSpec(width=12), DrawnSpec(first=3), training_spec(4, reinforced=False)),
        (PlainClassifierSpec(), DrawnClassesSpec(first=3), class_runs.training_spec(4)),
        (class_runs.MODEL, DrawnClassesSpec(first=3), class_runs.training_spec(4)),
    ],
    ids=["texts", "classes", "classes of a model of the library"],
)
def test_a_run_of_others_parts(kind_of, tmp_path, model, data, training):
    own = RunSpec(model=model, data=data, training=training)
    path = run(own, tmp_path / "run", device="cpu")
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["data"]["kind"] == kind_of(data)
    assert written["model"].get("kind") == (None if model is class_runs.MODEL else kind_of(model))
    assert from_json((tmp_path / "run" / "run.json").read_text(), RunSpec) == own
    assert load_file(path).keys() >= {name for name, _ in model.build().named_parameters()}
    assert run(own, tmp_path / "run", device="cpu") == path  # nothing is left to do
    with fails(ValueError, "data"):
        run(attrs.evolve(own, data=attrs.evolve(data, first=4)), tmp_path / "run", device="cpu")


def test_parts_of_others_fit_each_other():
    training = class_runs.training_spec()
    with fails(ValueError, "5", "8"):
        RunSpec(model=PlainClassifierSpec(), data=DrawnClassesSpec(num_classes=5), training=training)
    with fails(ValueError, "Plain"):
        build_objective(training.loss, spec=training, model=PlainSpec().build(), world=World())
    with fails(ValueError):
        build_objective(training_spec().loss, spec=training_spec(), model=PlainClassifierSpec().build(), world=World())


PIPELINE = ReinforcedPipelineSpec(
    shards="a.tar", batch_size=8, image=MODEL.image.input, text=TextInput(context_length=6, vocab_size=40)
)


def test_what_cannot_be_written_or_read_is_named():
    run_of = {"model": MODEL, "data": PIPELINE, "training": training_spec()}

    @attrs.frozen(kw_only=True)
    class LocalSpec(DrawnSpec):
        pass

    with fails(ValueError, "LocalSpec"):
        to_json(RunSpec(**{**run_of, "data": LocalSpec()}))
    text = to_json(RunSpec(**{**run_of, "data": DrawnSpec()}))
    with fails(ValueError, "no.such:DrawnSpec"):
        from_json(text.replace(f"{__name__}:DrawnSpec", "no.such:DrawnSpec"), RunSpec)
    with fails(ValueError, "Batches", "DataSpec"):
        RunSpec(**{**run_of, "data": Batches()})


def test_a_recipe_of_others_parts_has_their_choices_as_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = RunSpec(model=PlainClassifierSpec(), data=DrawnClassesSpec(), training=class_runs.training_spec(3))
    run_recipe(own, ["--data.first", "5", "--show"], name="own")
    (tmp_path / "own.json").write_text(text := capsys.readouterr().out)
    assert from_json(text, RunSpec) == attrs.evolve(own, data=attrs.evolve(own.data, first=5))
    run_recipe(own, ["own.json", "--device", "cpu"], name="own")
    assert from_json((tmp_path / "outputs" / "own" / "run.json").read_text(), RunSpec).data.first == 5
    with pytest.raises(SystemExit):
        run_recipe(own, ["--tiny"], name="own")

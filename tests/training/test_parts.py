"""Models and data that a run did not know: in its JSON, trained, gone on with, and read back."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mobileclip.data import ColumnPipelineSpec, OnlinePipelineSpec, ReinforcedPipelineSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.recipes.training import run_recipe
from mobileclip.serialization import from_json, to_json
from mobileclip.training import RunSpec, pipelines, run, students
from tests.errors import fails
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


class Plain(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, spec.width))
        self.text_encoder = nn.EmbeddingBag(40, spec.width)
        self.encode_image, self.encode_text = self.image_encoder.forward, self.text_encoder.forward
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))


@pytest.fixture(params=["by module", "registered"])
def kinds(request, monkeypatch):
    if request.param == "by module":
        return f"{__name__}:PlainSpec", f"{__name__}:DrawnSpec"
    monkeypatch.setitem(students._values, "plain", PlainSpec)
    monkeypatch.setitem(pipelines._values, "drawn", DrawnSpec)
    return "plain", "drawn"


def test_a_run_of_others_parts(kinds, tmp_path):
    training = training_spec(4, reinforced=False)
    own = RunSpec(model=PlainSpec(width=12), data=DrawnSpec(first=3), training=training)
    path = run(own, tmp_path / "run", device="cpu")
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [written[part]["kind"] for part in ("model", "data")] == list(kinds)
    assert from_json((tmp_path / "run" / "run.json").read_text(), RunSpec) == own
    PlainSpec(width=12).build().load_state_dict(load_file(path))
    assert run(own, tmp_path / "run", device="cpu") == path  # nothing is left to do
    with fails("training.holds-run-another-choice", "data"):
        run(attrs.evolve(own, data=DrawnSpec(first=4)), tmp_path / "run", device="cpu")


PIPELINE = ReinforcedPipelineSpec(
    shards="a.tar", batch_size=8, image=MODEL.image.input, text=TextInput(context_length=6, vocab_size=40)
)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PIPELINE, None),
        (ColumnPipelineSpec.of(PIPELINE, teacher_columns=(0, 3)), None),
        (OnlinePipelineSpec.of(PIPELINE, online=(16,)), f"{OnlinePipelineSpec.__module__}:OnlinePipelineSpec"),
    ],
)
def test_pipelines_of_the_library_are_read_back_as_what_they_are(data, kind):
    own = RunSpec(model=MODEL, data=data, training=training_spec())
    assert json.loads(to_json(own))["data"].get("kind") == kind
    assert from_json(to_json(own), RunSpec) == own


def test_what_cannot_be_written_or_read_is_named():
    run_of = {"model": MODEL, "data": PIPELINE, "training": training_spec()}

    @attrs.frozen(kw_only=True)
    class LocalSpec(DrawnSpec):
        pass

    with fails("serialization.attrs-class-top-module", "LocalSpec"):
        to_json(RunSpec(**{**run_of, "data": LocalSpec()}))
    text = to_json(RunSpec(**{**run_of, "data": DrawnSpec()}))
    with fails("serialization.class-import-module-first", "no.such:DrawnSpec", by=ValueError):
        from_json(text.replace(f"{__name__}:DrawnSpec", "no.such:DrawnSpec"), RunSpec)
    with fails("training.see-mobileclip-training", "Batches", "DataSpec"):
        RunSpec(**{**run_of, "data": Batches()})


def test_a_recipe_of_others_parts_has_their_choices_as_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = RunSpec(model=PlainSpec(), data=DrawnSpec(), training=training_spec(3, reinforced=False))
    run_recipe(lambda: own, "own", None, ["--pipeline.first", "5", "--show"])
    (tmp_path / "own.json").write_text(text := capsys.readouterr().out)
    assert from_json(text, RunSpec) == attrs.evolve(own, data=DrawnSpec(first=5))
    run_recipe(lambda: own, "own", None, ["--run", "own.json", "--device", "cpu"])
    assert from_json((tmp_path / "outputs" / "own" / "run.json").read_text(), RunSpec).data.first == 5
    with fails("recipes.library-own-models-data", "--data, --tiny", by=SystemExit):
        run_recipe(lambda: own, "own", None, ["--data", "a.tar", "--tiny"])

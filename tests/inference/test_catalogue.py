"""Multiply-accumulates of towers, held to the papers' table and to the formulas of their layers."""

import json
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from mobileclip import specs
from mobileclip.blocks import Attention, image_encoders, models, text_encoders
from mobileclip.cli.models import LISTED, listed_rows
from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec
from mobileclip.encoders.checkpoints import PACKAGED, PRETRAINED, skeleton
from mobileclip.inference.catalogue import describe, macs_of, num_macs, num_parameters, rows
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json
from tests.encoders.small import SMALL

TOWERS = {**image_encoders, **text_encoders}
FAST = {"mci0", "mci3", "vit_b16", "vit_l14", "text_mct"}


@pytest.mark.parametrize(
    ("name", "millions", "billions"), [("mci0", 11.8, 2.4), ("mci1", 21.9, 4.7), ("mci2", 36.3, 7.8)]
)
def test_classifiers_are_as_large_as_the_paper_states(name, millions, billions):
    """MobileCLIP, table 11, at 256 pixels; 1,000 classes in place of the projection are as good as none of the work."""
    features = image_encoders[name].without_projection()
    assert (num_parameters(features, folded=True) + 1000 * (features.embedding_dim + 1)) / 1e6 == pytest.approx(
        millions, abs=0.1
    )
    assert round(num_macs(image_encoders[name]) / 1e9, 1) == billions


def layer_macs(model, example):
    """Return the multiply-accumulates of a model's convolutions, linear layers and attention, by their formulas."""
    found = []

    def convolution(layer, _, output):
        found.append(output.shape[-2:].numel() * layer.weight.numel())

    def linear(layer, _, output):
        found.append(output.shape[:-1].numel() * layer.weight.numel())

    def attention(layer, inputs, _):
        tokens = inputs[0].shape[1] if inputs[0].ndim == 3 else inputs[0].shape[2:].numel()
        found.append(2 * tokens**2 * layer.project.in_features)

    for kind, count in ((nn.Conv2d, convolution), (nn.Linear, linear), (Attention, attention)):
        for layer in model.modules():
            if isinstance(layer, kind):
                layer.register_forward_hook(count)
    with torch.no_grad():
        model(example)
    return sum(found)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TOWERS]
)
def test_a_tower_is_the_sum_of_its_layers(name):
    tower = TOWERS[name]
    shape = (1, 3, tower.input.size, tower.input.size) if name in image_encoders else (1, tower.input.context_length)
    example = torch.zeros(shape, device="meta", dtype=torch.float32 if name in image_encoders else torch.int64)
    assert num_macs(tower) == layer_macs(skeleton(tower, "folded"), example)
    if name == "vit_b16":
        assert 4 < num_macs(attrs.evolve(tower, input=ImageInput(size=448))) / num_macs(tower) < 5


@attrs.frozen(kw_only=True)
class BrightestSpec(ImageEncoderSpec):
    """A tower whose path depends on pixels."""

    def build(self):
        tower = Brightest(3, self.embedding_dim)
        tower.spec = self
        return tower


class Brightest(nn.Linear):
    def forward(self, images):
        pixels = images.flatten(2)
        return super().forward(pixels.amax(-1) if pixels.mean().item() > 0 else pixels.amin(-1))


def test_a_tower_that_computes_with_values_is_not_counted(capsys):
    assert num_macs(BrightestSpec()) is None
    assert num_parameters(BrightestSpec()) == 4 * 512
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 100, 5))
    assert macs_of(layers.eval(), torch.rand(1, 3, 10, 10)) == 8 * 3 * 9 * 100 + 8 * 100 * 5
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [("s0", "mci0", "icons"), pytest.param(("",), marks=pytest.mark.slow)])
def test_the_kept_table_is_what_would_be_computed(words):
    """`python -m tests.listing` writes it anew."""
    kept = [json.loads(line) for line in LISTED.read_text(encoding="utf-8").splitlines()]
    names = {row["name"] for row in kept}
    assert {*PACKAGED, *PRETRAINED} <= names
    computed = {name for name in names if name.endswith(words)}
    assert len(computed) > 2
    expected = [row for row in kept if row["name"] in computed]
    assert expected == [row for row in rows(known=names - computed) if row["name"] in names]


def test_a_model_that_others_register_is_listed_and_described_with_those_that_are_built_like_it(monkeypatch):
    before, published = listed_rows(), describe("mobileclip_b")
    monkeypatch.setitem(models._values, "a_twin", specs.mobileclip_b())
    assert [row for row in listed_rows() if row not in before] == rows(known={row["name"] for row in before})
    assert listed_rows()[-1]["name"] == "a_twin"
    twin = describe("a_twin")
    assert published["published weights"].startswith("hf-hub:")
    assert "built like" not in published
    assert (twin["published weights"], twin["built like"]) == (None, ("mobileclip_b", "mobileclip_blt"))
    same = twin.keys() - {"name", "published weights", "built like", "licence"}
    assert {key: twin[key] for key in same} == {key: published[key] for key in same}


def test_what_a_model_takes_and_is_made_of_is_described(small_file):
    found = describe(str(small_file))
    assert found["checkpoint"] == str(small_file)
    assert (found["layout"], found["form"], found["dtypes"]) == ("mobileclip", "training", ["float32", "int64"])
    assert found["input"]["image"]["size"] == SMALL.image.input.size
    assert found["input"]["text"]["context_length"] == SMALL.text.input.context_length
    assert found["parameters"]["image"] == {
        "training": num_parameters(SMALL.image),
        "folded": num_parameters(SMALL.image, folded=True),
    }
    assert found["multiply-accumulates"] == {"image": num_macs(SMALL.image), "text": num_macs(SMALL.text)}
    assert from_json(json.dumps(found["spec"]), DualEncoderSpec) == SMALL
    assert "card" not in found
    assert Path(describe("icons")["card"]).read_text(encoding="utf-8").startswith("# ")

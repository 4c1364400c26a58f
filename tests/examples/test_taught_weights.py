"""Weights that a small model teaches a published architecture."""

import attrs
import pytest
import torch
from PIL import Image

from benchmarks.runtime_sides import match_of
from benchmarks.runtimes import RuntimesBenchSpec
from examples.models.taught_weights import TaughtWeightsSpec, taught_weights
from mobileclip.encoders import load_model
from mobileclip.inference import QuantizationSpec
from mobileclip.inference.quantization import PlacesSpec, TuningSpec


@pytest.fixture
def data(tmp_path):
    for number in range(130):
        Image.new("RGB", (64, 64), (number, 255 - number, 2 * number % 256)).save(tmp_path / f"{number}.png")
    (tmp_path / "texts.txt").write_text("".join(f"colour {number}\n" for number in range(130)), encoding="utf-8")
    return tmp_path


def spec_of(folder, **choices):
    return TaughtWeightsSpec(
        images=(str(folder),), texts=(str(folder / "texts.txt"),), output=folder / "s0.safetensors", **choices
    )


@pytest.mark.slow
def test_what_is_taught_is_what_both_sides_of_the_fair_table_hold(data):
    taught_weights(spec_of(data, minutes=0.02, batch_size=8, num_images=130, num_texts=130))
    quantised, tuning = data / "quantised" / "s0.safetensors", TuningSpec(num_steps=1)
    quantised.parent.mkdir()
    given = {"checkpoint": str(data / "s0.safetensors"), "images": (str(data),), "num_images": 8}
    spec = QuantizationSpec(model="mobileclip2_s0", output=quantised, places=PlacesSpec(most_float=0), **given)
    attrs.evolve(spec, tuning=tuning).run(show_progress=False)
    match = match_of(RuntimesBenchSpec(weights=data, quantised=quantised.parent, photo_side=64), "s0", "image", 2)
    release, mine = (side.module(match.inputs) for side in match.sides)
    assert torch.cosine_similarity(match.sides[1].quantised(match.inputs), mine).min() > 0.9
    assert match.sides[1].quantised.ranges
    torch.testing.assert_close(release, mine, rtol=1e-3, atol=1e-4)
    model = load_model(data / "s0.safetensors", fold=True).image_encoder(match.inputs)
    torch.testing.assert_close(mine, model, rtol=1e-3, atol=1e-4)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_taught(data):
    with pytest.raises(ValueError, match="safetensors"):
        taught_weights(attrs.evolve(spec_of(data), output=data / "s0.pt"))

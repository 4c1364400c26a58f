"""The comparison with timm and open_clip: honest about what it compares, on models small enough for a test."""

import pytest
import torch
from torch import nn

from benchmarks.harness import run
from benchmarks.models import ModelBenchSpec, compare
from benchmarks.rivals import PUBLISHED, example, randomize
from mobileclip import reparameterize
from mobileclip.encoders import MCiSpec, StageSpec
from mobileclip.inputs import ImageInput
from mobileclip.reparam import LayerScale

SPEC = MCiSpec(stages=(StageSpec(dim=8, depth=2), StageSpec(dim=16, depth=1)), input=ImageInput(size=64))


class Repeated(nn.Module):
    """Computes the same as what it holds, several times."""

    def __init__(self, model, times):
        super().__init__()
        self.model = model
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            y = self.model(x)
        return y


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = SPEC.build().eval()
    randomize(encoder)
    return encoder


@pytest.mark.slow
def test_times_and_ratio(encoder):
    folded = reparameterize(encoder)
    values = compare(folded, Repeated(folded, 20), torch.rand(2, 3, 64, 64), rounds=9)
    assert 0 < values["mobileclip"].number < values["reference"].number
    assert values["ratio"].low <= values["ratio"].number < 0.5
    assert values["ratio"].high < 0.8
    assert values["error"].number == 0


def test_folded_and_unfolded_are_comparable(encoder):
    assert 0 < compare(reparameterize(encoder), encoder, torch.rand(2, 3, 64, 64), rounds=2)["error"].number < 2e-5


def test_models_that_differ_are_not_timed(encoder):
    with pytest.raises(ValueError, match="which is no rounding error"):
        compare(encoder, SPEC.build().eval(), torch.rand(1, 3, 64, 64), rounds=2)
    with pytest.raises(ValueError, match="the outputs differ by nan"):
        compare(
            encoder,
            Repeated(nn.Sequential(encoder, nn.Threshold(1e9, torch.nan)), 1),
            torch.rand(1, 3, 64, 64),
            rounds=2,
        )


def test_random_weights_leave_no_block_an_identity(encoder):
    scales = [module.gamma for module in encoder.modules() if isinstance(module, LayerScale)]
    assert scales
    assert all(scale.min() >= 0.1 for scale in scales)


def test_texts_have_one_start_and_one_end_and_padding():
    spec = PUBLISHED["s1"].spec()
    tokens = example(spec, "text", batch_size=20, channels_last=False)
    assert tokens.shape == (20, 77)
    assert (tokens[:, 0] == spec.text.input.start_id).all()
    assert ((tokens == spec.text.input.end_id).sum(1) == 1).all()


@pytest.mark.slow
def test_s0_against_timm_and_open_clip():
    results = run(ModelBenchSpec(models=("s0",), rounds=2), "models")
    assert [(row.case["tower"], row.case["against"]) for row in results.rows] == [
        ("image", "timm"),
        ("image", "open_clip"),
        ("text", "open_clip"),
    ]
    assert all(row.values["error"].number < 2e-6 for row in results.rows)

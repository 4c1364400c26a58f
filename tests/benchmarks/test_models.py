"""The comparison with timm and open_clip: honest about what it compares, on models small enough for a test."""

import importlib.util
import re

import pytest
import torch
from torch import nn

from benchmarks.models import ModelBenchSpec, compare, measure
from benchmarks.rivals import PUBLISHED, example, randomize
from mobileclip import reparameterize
from mobileclip.encoders import MCiSpec, StageSpec
from mobileclip.extras import install_library
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
    result = compare(folded, Repeated(folded, 20), torch.rand(2, 3, 64, 64), rounds=9)
    assert 0 < result.mobileclip < result.reference
    assert result.ratio == result.mobileclip / result.reference < 0.5
    assert result.ratio_quartiles[0] <= result.ratio_quartiles[1] < 0.8
    assert result.error == 0


def test_folded_and_unfolded_are_comparable(encoder):
    assert 0 < compare(reparameterize(encoder), encoder, torch.rand(2, 3, 64, 64), rounds=2).error < 2e-5


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


def test_a_missing_rival_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "open_clip" else name)
    with pytest.raises(SystemExit, match=rf"open_clip cannot be imported, .*: {re.escape(install_library('test'))}"):
        next(measure(ModelBenchSpec(models=("s0",))))


@pytest.mark.slow
def test_s0_against_timm_and_open_clip():
    results = list(measure(ModelBenchSpec(models=("s0",), rounds=2)))
    pairs = [(tower, rival) for _, tower, rival, _, _ in results]
    assert pairs == [("image", "timm"), ("image", "open_clip"), ("text", "open_clip")]
    assert all(result.error < 2e-6 for *_, result in results)

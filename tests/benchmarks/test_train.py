"""The comparison of training steps: it times whole steps, of models that start alike, and says so when they do not."""

import copy

import attrs
import pytest
import torch
from torch import nn

from benchmarks.harness import run
from benchmarks.train import LEARNING_RATE, Side, TrainBenchSpec, compare, mobileclip_side, open_clip_side
from tests.encoders.small import SMALL

SPEC = TrainBenchSpec(batch_size=4, rounds=3)
CHOICES = {"rounds": 3, "largest_error": 1e-3}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    size, context = SMALL.image.input.size, SMALL.text.input.context_length
    return torch.rand(4, 3, size, size), torch.randint(1, SMALL.text.input.vocab_size, (4, context))


class Tupled(nn.Module):
    """Our model as open_clip's are called."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, text):
        return self.model(image, text)


@pytest.mark.slow
def test_a_side_compared_with_itself(model, inputs):
    images, texts = inputs
    result = compare(
        mobileclip_side(model, texts, SPEC), mobileclip_side(copy.deepcopy(model), texts, SPEC), images, **CHOICES
    )
    assert result["error"].number == 0
    assert 0 < result["ratio"].low <= result["ratio"].high
    assert result["mobileclip memory"] == result["open_clip memory"]
    assert result["mobileclip memory"].number * 2**20 > images.nbytes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*autograd.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_both_sides_are_compiled(model, inputs, monkeypatch):
    images, texts = inputs
    compile_module = nn.Module.compile
    # The compiler without its last part, which takes minutes.
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    spec = attrs.evolve(SPEC, compile="step")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    sides = mobileclip_side(model, texts, spec), open_clip_side(Tupled(copy.deepcopy(model)), texts, spec)
    result = compare(*sides, images, **CHOICES)
    assert result["error"].number < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@pytest.mark.slow
def test_both_sides_start_with_one_loss_and_make_steps_of_one_size(model, inputs):
    images, texts = inputs
    before = copy.deepcopy(model)
    other = Tupled(copy.deepcopy(model))
    ours, theirs = mobileclip_side(model, texts, SPEC), open_clip_side(other, texts, SPEC)
    (loss, gradient), (other_loss, other_gradient) = (side.start(images) for side in (ours, theirs))
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert float((gradient - other_gradient).norm() / other_gradient.norm()) < 1e-4
    for side in (ours, theirs):
        side.step(images)
    # AdamW's first step is the learning rate, either way, in every direction that has a gradient.
    for trained in (model, other):
        pairs = zip(before.parameters(), trained.parameters(), strict=True)
        moved = [float((new.detach() - old.detach()).abs().max()) / LEARNING_RATE for old, new in pairs]
        assert max(moved) < 1.3
        assert sum(step > 0.9 for step in moved) > 0.9 * len(moved)


@pytest.mark.slow
def test_a_side_that_computes_more_is_slower(model, inputs):
    images, texts = inputs
    ours, other = (mobileclip_side(copy.deepcopy(model), texts, SPEC) for _ in range(2))
    slower = Side(lambda images: sum(other.loss(images) for _ in range(8)) / 8, other.optimizer)
    result = compare(ours, slower, images, **CHOICES | {"rounds": 7})
    assert result["mobileclip"].number > result["open_clip"].number
    assert min(result[name].number for name in ("ratio", "CPU ratio")) > 2
    assert result["open_clip memory"].number > 5 * result["mobileclip memory"].number


def test_models_that_differ_are_not_timed(model, inputs):
    images, texts = inputs
    ours, other = mobileclip_side(model, texts, SPEC), mobileclip_side(SMALL.build(), texts, SPEC)
    with pytest.raises(ValueError, match=r"the losses are .* that is no rounding error"):
        compare(ours, other, images, **CHOICES)
    broken = attrs.evolve(other, loss=lambda images: other.loss(images) * torch.nan)
    with pytest.raises(ValueError, match=r"the losses are .* and nan"):
        compare(ours, broken, images, **CHOICES)


def test_open_clips_optimiser_decays_what_its_training_decays(model, inputs):
    """Its rule goes by names and dimensions: layer scales of three dimensions decay there, and not here."""
    kept, decayed = open_clip_side(Tupled(model), inputs[1], SPEC).optimizer.param_groups
    assert (kept["weight_decay"], decayed["weight_decay"]) == (0.0, 0.2)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(kept["params"]) + len(decayed["params"]) == len(list(model.parameters()))
    assert any(parameter is model.logit_scale for parameter in kept["params"])


def test_channels_last_is_for_gpus():
    with pytest.raises(ValueError, match="channels_last is for --device cuda"):
        TrainBenchSpec(channels_last=True)


@pytest.mark.slow
def test_s0_against_open_clip():
    (row,) = run(TrainBenchSpec(models=("s0",), batch_size=2, rounds=2), "train").rows
    assert row.case == {"model": "s0"}
    assert row.values["error"].number < 1e-3
    assert row.values["mobileclip memory"].number < row.values["open_clip memory"].number


@pytest.mark.gpu
def test_s0_against_open_clip_on_a_gpu():
    choices = {"models": ("s0",), "batch_size": 16, "rounds": 2, "device": "cuda", "channels_last": True}
    (row,) = run(TrainBenchSpec(precision="bfloat16", **choices), "train").rows
    assert row.values["mobileclip"].number > 0
    assert 0 < row.values["mobileclip memory"].number < 1.1 * row.values["open_clip memory"].number

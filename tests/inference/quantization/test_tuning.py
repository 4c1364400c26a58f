"""Tuning in int8: the same loss as its formula, nearer embeddings, and the same end wherever it was left."""

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.inference.quantization import (
    Tuning,
    TuningSpec,
    batches_of,
    observed_ranges,
    ranges_of,
    rounded,
    tuning_loss,
    with_rounded_weights,
)
from mobileclip.tensor_files import read_tensors
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, pixels, seeing

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = TuningSpec(num_steps=40, learning_rate=5e-3, relations=1.0)


@pytest.fixture(scope="module")
def tower():
    return reparameterize(seeing(CONVOLUTIONAL)).image_encoder


@pytest.fixture(scope="module")
def inputs():
    return pixels(CONVOLUTIONAL.image.input)


@pytest.fixture(scope="module")
def ranges(tower, inputs):
    return observed_ranges(tower, lambda: torch.split(inputs, 4))


@pytest.fixture
def tuning(tower, inputs, ranges):
    return lambda spec=SPEC: Tuning(tower, ranges, batches_of(inputs, batch_size=6), spec, checked=[inputs])


def test_the_loss_is_its_formula():
    own, other = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    each, relations = (0 + 1 - 0.5**0.5) / 2, 2 * 0.5 / 4
    torch.testing.assert_close(tuning_loss(own, other, relations=0.5), torch.tensor(each + relations / 2))
    assert tuning_loss(own, 8 * own, relations=1.0) == 0


def test_inputs_come_once_before_any_comes_twice():
    batch = batches_of(torch.arange(7), batch_size=2)
    rounds = [torch.cat([batch(3 * number + place) for place in range(3)]).tolist() for number in range(4)]
    assert all(len(set(one)) == 6 for one in rounds)
    assert len({tuple(one) for one in rounds}) == 4
    assert torch.equal(batch(5), batches_of(torch.arange(7), batch_size=2)(5))
    assert not torch.equal(batches_of(torch.arange(99), batch_size=99, seed=1)(0), torch.arange(99))
    assert sorted(batches_of(torch.arange(3), batch_size=8)(4).tolist()) == [0, 1, 2]


def test_tuned_embeddings_are_nearer_and_the_tower_stays_as_it_is(tuning, tower, inputs, ranges):
    weights = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    run = tuning()
    while not run.done:
        run.advance()
    with torch.no_grad():
        expected = tower(inputs)
        before, after = (
            tuning_loss(form(inputs), expected, relations=1.0) for form in (rounded(tower, ranges), run.tower)
        )
    assert after < 0.6 * before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tower.state_dict().items())
    assert all(parameter.grad is None for parameter in tower.parameters())
    changed = ranges_of(run.tower)
    assert changed.keys() == ranges.keys()
    assert any(not torch.allclose(changed[name], values, rtol=1e-3) for name, values in ranges.items())


def test_without_rounding_of_weights_each_takes_its_nearest(tuning, tower):
    run = tuning(TuningSpec(num_steps=2, round_weights=False))
    for _ in range(2):
        run.advance()
    found = with_rounded_weights(tower, run.tower)
    for name, steps in found.ranges.items():
        if name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            wide = steps.reshape(-1, 1, 1, 1) if tower.get_parameter(name).ndim == 4 else steps[:, None]
            inside = tower.get_parameter(name).abs() <= 64 * wide
            error = (found.get_parameter(name) - tower.get_parameter(name)).abs()
            assert (error <= 0.5001 * wide)[inside].all(), layer


def test_weights_take_one_of_their_neighbours(tuning, tower):
    run = tuning()
    for _ in range(20):
        run.advance()
    found = with_rounded_weights(tower, run.tower)
    moved = 0
    for name, steps in found.ranges.items():
        if name.endswith(".weight"):
            weight = tower.get_parameter(name)
            wide = steps.reshape(-1, *(1,) * (weight.ndim - 1))
            error = ((found.get_parameter(name) - weight) / wide).abs()[weight.abs() <= 64 * wide]
            assert error.max() < 1.0001
            moved += int((error > 0.51).sum())
    assert moved > 0


def test_what_was_left_goes_on_to_the_same_end(tuning, tmp_path):
    from safetensors.torch import save_file

    whole, first, second = tuning(), tuning(), tuning()
    losses = [whole.advance() for _ in range(6)]
    assert [first.advance() for _ in range(3)] == losses[:3]
    save_file(first.state(), tmp_path / "state.safetensors")
    second.restore(read_tensors(tmp_path / "state.safetensors")[0])
    assert second.step == 3
    assert [second.advance() for _ in range(3)] == losses[3:]
    ends = [run.state() for run in (whole, second)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    whole.restore(tuning().state())
    assert [whole.advance() for _ in range(2)] == losses[:2]


def test_what_makes_it_worse_is_not_kept(tower, inputs, ranges):
    """Whatever a rate does in a few steps, the tower ends no further from float32 on what decides it than it began."""
    reckless = TuningSpec(num_steps=3, learning_rate=10.0)
    batches, checked = batches_of(inputs[4:], batch_size=4), [inputs[:2], inputs[2:4]]
    ends = {}
    for name, judged in {"last": (), "best": checked}.items():
        run = Tuning(tower, ranges, batches, reckless, checked=judged)
        while not run.done:
            run.advance()
        ends[name] = run
    with torch.no_grad():
        expected = tower(inputs[:4])
        start, last, best = (
            tuning_loss(one(inputs[:4]), expected, relations=10.0)
            for one in (rounded(tower, ranges), ends["last"].tower, ends["best"].tower)
        )
    assert last > start
    assert best <= start
    again = Tuning(tower, ranges, batches, reckless, checked=checked)
    again.restore(ends["best"].state())
    assert again.done
    changed = ranges_of(ends["best"].tower)
    assert all(torch.equal(one, changed[name]) for name, one in ranges_of(again.tower).items())


def test_few_steps_go_slower():
    assert TuningSpec(num_steps=10).rate(0) == pytest.approx(2.5e-3)
    assert TuningSpec(num_steps=200).rate(0) == pytest.approx(1e-2)


def test_the_state_of_another_tuning_is_refused(tuning):
    run = tuning()
    state = run.state()
    other = tuning(TuningSpec(num_steps=4, round_weights=False))
    with fails(ValueError, "rounding.shift"):
        other.restore(state)
    state.pop("step")
    with fails(ValueError, "step"):
        run.restore(state)

"""Runs in float16: a scaled loss, and steps that are left out where it overflows."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mobileclip.training import LossScale, World, build_objective
from tests.errors import fails
from tests.training.runs import batch_of, last_checkpoint, logged, new_model, trained, training_spec


def test_it_is_pytorchs_scaler():
    """The factor behind every step, and the gradient."""
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu")
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights[1:], lr=0.0)
    overflows = {0, 1, 300, 2_400, 2_401}
    for step in range(2_450):
        size = torch.tensor(torch.inf if step in overflows else 3.0)
        for weight in weights:
            weight.grad = None
        ours.backward((weights[0] * size).sum(), weights[:1])
        theirs.scale((weights[1] * size).sum()).backward()
        theirs.unscale_(optimizer)
        assert torch.equal(weights[0].grad, weights[1].grad)
        theirs.step(optimizer)
        theirs.update()
        assert ours.leaves_out(is_finite=step not in overflows) == (step in overflows)
        assert ours.factor.item() == theirs.get_scale()
    assert ours.factor.item() == 2**16 / 2**5 * 2


def test_gradients_are_near_those_of_float32():
    found = {}
    for precision in ("float32", "float16"):
        spec = training_spec(precision=precision)
        objective = build_objective(spec.loss, spec=spec, model=new_model(), world=World())
        terms = objective(batch_of(0))
        if precision == "float32":
            assert objective.loss_scale is None
            terms[-1].backward()
        else:
            objective.loss_scale.factor.fill_(2.0**10)
            objective.loss_scale.backward(terms[-1], objective.parameters())
        found[precision] = torch.cat([one.grad.flatten() for one in objective.parameters()]), terms[-1].item()
    (exact, loss), (narrow, near) = found.values()
    assert torch.cosine_similarity(exact, narrow, dim=0) > 0.99
    assert narrow.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)
    assert near == pytest.approx(loss, rel=0.01)
    assert not torch.equal(exact, narrow)


def overflowing(steps):
    """Return a model whose gradient overflows at some steps."""
    model, number = new_model(), itertools.count()
    position = model.text_encoder.position
    position.register_hook(lambda gradient: gradient * torch.inf if next(number) in steps else gradient)
    return model


def test_a_step_that_overflows_is_left_out(tmp_path, caplog):
    choices = {"ema_decay": None, "checkpoint_every_steps": 1, "keep_checkpoints": 9}
    trained(tmp_path, training_spec(9, precision="float16", **choices), model=overflowing({7}))
    states = [load_file(tmp_path / "checkpoints" / f"step-{step:08d}.safetensors") for step in (7, 8, 9)]
    weights = [state["objective/model.text_encoder.token_embedding.weight"] for state in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    factors = [state["objective/loss_scale.factor"].item() for state in states]
    assert factors == [factors[0], factors[0] / 2, factors[0] / 2]
    left_out = set(range(9)) - {line["step"] for line in logged(tmp_path)}
    assert left_out & {6, 7, 8} == {7}
    assert all(f"step {step} is skipped" in caplog.text for step in left_out)
    assert factors[0] == 2.0 ** (17 - len(left_out))


def test_what_overflows_whatever_the_scale_stops_the_run(tmp_path):
    model = overflowing(range(99))
    with fails(FloatingPointError, "gradient norm", "16"):
        trained(tmp_path, training_spec(20, precision="float16"), model=model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert last_checkpoint(tmp_path)

import pytest
import torch
from torch import nn

from mobileclip.training import MovingAverage
from tests.errors import fails
from tests.training.runs import new_model, training_spec


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_closed_form_of_weights_and_statistics():
    """After n steps: `decay^n w_0 + (1 - decay) sum_i decay^(n - i) w_i`."""
    model, decay, num_steps = new_model(), 0.8, 5
    history, average = [copied(model)], MovingAverage(model, decay)
    for _ in range(num_steps):
        for value in model.state_dict().values():
            value.add_(torch.randn(value.shape).to(value.dtype) if value.is_floating_point() else 1)
        average.update(model)
        history.append(copied(model))
    assert any("running_var" in name for name in history[0])
    for name, value in average.module.state_dict().items():
        expected = history[-1][name]
        if value.is_floating_point():
            parts = [(1 - decay) * decay ** (num_steps - step) * history[step][name].double() for step in range(1, 6)]
            expected = decay**num_steps * history[0][name].double() + sum(parts)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_the_average_is_apart_from_the_model():
    model = new_model().train()
    average = MovingAverage(model, 0.5)
    assert not average.module.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    with torch.no_grad():
        model.logit_scale.add_(1)
    assert average.module.logit_scale != model.logit_scale


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_outside_of_its_range_is_refused(decay):
    with fails(ValueError, str(decay)):
        MovingAverage(new_model(), decay)
    with fails(ValueError, "ema_decay"):
        training_spec(9, ema_decay=decay)


def test_weights_of_several_precisions_are_averaged_each_in_its_own():
    model = new_model()
    model.text_encoder.bfloat16()
    model.image_encoder.double()
    average = MovingAverage(model, 0.9)
    before = copied(average.module)
    for value in model.state_dict().values():
        value.add_(1)
    average.update(model)
    after = average.module.state_dict()
    assert {value.dtype for value in after.values()} == {torch.float32, torch.float64, torch.bfloat16, torch.int64}
    for name, value in model.state_dict().items():
        assert torch.equal(after[name], before[name].lerp_(value, 1 - 0.9) if value.is_floating_point() else value)


def test_weights_with_two_names_take_one_step():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.zero_()
        average = MovingAverage(model, 0.9)
        model[0].weight.fill_(1.0)
    average.update(model)
    torch.testing.assert_close(average.module[1].weight, torch.full((2, 2), 0.1))

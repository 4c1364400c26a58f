import copy

import pytest
import torch
from torch import nn

from mobileclip import build_model
from mobileclip.training import AdamWSpec, decay_groups, set_learning_rate
from mobileclip.training.finetuning import LayerDecayAdamWSpec
from tests.errors import fails
from tests.training.runs import new_model


@pytest.mark.parametrize("name", ["mobileclip_s0", "mobileclip_b", "vit_l14", "mci3"])
def test_nothing_but_kernels_and_matrices_decays_in_the_published_models(name):
    with torch.device("meta"):
        model = build_model(name)
    decayed, kept = decay_groups(model)
    assert all(max(value.shape) < value.numel() or value.shape[1:] == (1, 1, 1) for value in decayed.values())
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    assert {name.rpartition(".")[0] for name in kept} >= set(norms)
    assert not {name.rpartition(".")[0] for name in decayed} & set(norms)
    assert not any("position" in key and value.ndim == 2 for key, value in decayed.items())


OTHERS = [
    ("mobileclip_s0", "positions", {"text_encoder.position"}),
    ("mobileclip_b", "positions", {"image_encoder.position", "text_encoder.position"}),
    ("mobileclip_b", "class_tokens", {"image_encoder.class_token"}),
    ("mobileclip_b", "layer_scales", set()),
]


@pytest.mark.parametrize(("name", "kind", "expected"), OTHERS)
def test_what_else_may_be_decayed(name, kind, expected):
    with torch.device("meta"):
        model = build_model(name)
    always, _ = decay_groups(model)
    chosen, _ = decay_groups(model, ("weights", kind))
    assert chosen.keys() - always.keys() == expected
    assert decay_groups(model, (kind,))[0].keys() == expected


def test_layer_scales_are_decayed_where_they_are_asked_for():
    model = new_model()
    chosen, kept = decay_groups(model, ("layer_scales",))
    assert chosen.keys() == {name for name, _ in model.named_parameters() if name.endswith("gamma")}
    assert chosen.keys() | kept.keys() == {name for name, _ in model.named_parameters()}
    groups = LayerDecayAdamWSpec(decayed=("layer_scales",)).build(model).param_groups
    assert sum(len(group["params"]) for group in groups if group["weight_decay"]) == len(chosen)


def test_one_step_is_adamw():
    model = nn.Linear(3, 2, bias=False)
    start = model.weight.detach().clone()
    optimizer = AdamWSpec(beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.5).build(model)
    optimizer.param_groups[0]["lr"] = 0.01
    gradient = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.0, 3.0]])
    model.weight.grad = gradient.clone()
    optimizer.step()
    expected = start * (1 - 0.01 * 0.5) - 0.01 * gradient / (gradient.abs() + 1e-6)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_specs_check_their_values():
    for name, wrong in (("decayed", ("norms",)), ("decayed", ("weights", "weights")), ("beta2", 1.0)):
        with fails(ValueError, name):
            AdamWSpec(**{name: wrong})


def test_frozen_weights_are_left_out():
    model = new_model()
    model.text_encoder.requires_grad_(False)
    decayed, kept = decay_groups(model)
    assert not any(name.startswith("text_encoder") for name in (*decayed, *kept))
    model.requires_grad_(False)
    with fails(ValueError):
        AdamWSpec().build(model)


def test_the_learning_rate_of_a_group_is_scaled_where_it_says_so():
    optimizer = AdamWSpec().build(nn.Linear(3, 2))
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    optimizer.param_groups[1]["rate_scale"] = 4.0
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]


def test_weights_with_two_names_take_one_step():
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    alone = copy.deepcopy(tied[0])
    for model in (tied, alone):
        optimizer = AdamWSpec().build(model)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
        model(torch.ones(1, 2)).sum().backward()
        alone.weight.grad = tied[0].weight.grad.clone()
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
    torch.testing.assert_close(tied[0].weight, alone.weight)

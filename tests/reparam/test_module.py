"""Copies of modules that share what they learned: what is added to one is not the other's."""

import pytest
import torch
from torch import nn

from mobileclip.reparam import is_hooked, reparameterize, some_outputs, with_children


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_copy_keeps_hooks_and_shares_no_further_ones(register):
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    copy = with_children(model, {"1": nn.Identity()})
    getattr(copy, register)(lambda *_: None)
    assert (is_hooked(copy), is_hooked(model)) == (True, False)
    assert is_hooked(with_children(copy, {}))


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Conv2d(6, 6, 1, groups=6)])
def test_some_outputs_share_the_weights_and_learn_nothing(layer):
    part = some_outputs(layer, slice(2, 4))
    assert not any(parameter.requires_grad for parameter in part.parameters())
    with torch.no_grad():
        layer.weight.mul_(3)
    assert torch.equal(part.weight, layer.weight[2:4])
    assert layer.weight.requires_grad


def test_a_folded_copy_has_collections_of_its_own():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    model.register_forward_hook(lambda *_: None)
    folded = reparameterize(model)
    folded[0].register_forward_hook(lambda *_: None)
    folded[1].register_buffer("more", torch.zeros(1))
    assert [is_hooked(module) for module in folded.modules()] == [True, True, False]
    assert [is_hooked(module) for module in model.modules()] == [True, False, False]
    assert [len(list(module.buffers(recurse=False))) for module in (*folded, *model)] == [0, 1, 0, 0]
    assert not {id(one) for one in folded.parameters()} & {id(one) for one in model.parameters()}

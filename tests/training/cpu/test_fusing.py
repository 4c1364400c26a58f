"""Blocks made quick on a CPU: the values and gradients of their formulas, and theirs wherever somebody looks on."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from mobileclip import reparameterize
from mobileclip.blocks import RepMixerBlock
from mobileclip.training.cpu import fuse_for_cpu
from tests.blocks.contract import CASES
from tests.blocks.filling import filled, noise


def watched(module):
    """What goes into a module."""
    taken = []
    module.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    return taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_small_layer_scale_is_not_lost(dtype):
    block = RepMixerBlock(6, hidden_dim=9, layer_scale=1e-7).train()
    block.token_mixer = nn.Identity()
    x = noise(2, 6, 5, 4)
    expected = block.layer_scale(block.ffn(x))
    block = fuse_for_cpu(block)
    scaled = watched(block.drop_path)
    with torch.autocast("cpu", dtype=dtype):
        block(x)
    assert (scaled[0] - expected).norm() < 0.03 * expected.norm()
    block.to(dtype)(x.to(dtype))
    assert scaled[1].dtype == dtype


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def trained(block, case):
    """Return the output and every gradient and buffer of a training step in float64."""
    inputs = case.inputs(batch=3, dtype=torch.float64)
    inputs[0].requires_grad_()
    torch.manual_seed(0)  # some paths are dropped
    y = block(*inputs)
    (y * noise(*y.shape, seed=1).double()).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"output": y.detach(), "input": inputs[0].grad, **gradients, **dict(block.named_buffers())}


def test_every_block_trains_as_by_its_formula(case):
    block = filled(case.make()).double().train()
    other = fuse_for_cpu(copy.deepcopy(block))
    torch.testing.assert_close(trained(other, case), trained(block, case), rtol=1e-11, atol=1e-11)


def test_hooks_fire_as_in_the_formula_and_nothing_changes_its_class(case):
    """Once each, on every module that computes, whoever looks on; one from before goes along."""
    block = filled(case.make()).double().train()
    modules = [(module, type(module)) for module in block.modules()]
    seen = watched(block)
    fuse_for_cpu(block)
    parts = [part for part in block.modules() if not isinstance(part, nn.ModuleList)]
    fired = []
    for part in parts:
        part.register_forward_hook(lambda module, *_: fired.append(module))
    block(*case.inputs(dtype=torch.float64))
    assert sorted(map(id, fired)) == sorted(map(id, parts))
    assert [type(module) for module, _ in modules] == [cls for _, cls in modules]
    assert len(seen) == 1


def test_folding_copies_and_evaluation_are_those_of_the_formula(case):
    block, inputs = filled(case.make()).double(), case.inputs(dtype=torch.float64)
    other = fuse_for_cpu(copy.deepcopy(block))
    assert torch.equal(other(*inputs), block(*inputs))
    for changed in (copy.deepcopy(other), pickle.loads(pickle.dumps(other)), reparameterize(other)):
        torch.testing.assert_close(changed(*inputs), block(*inputs), rtol=1e-10, atol=1e-10)
    assert other.state_dict().keys() == block.state_dict().keys()


def test_a_pruned_projection_trains_step_after_step():
    """Pruning sets a weight in front of every call, so that a weight read without a call would be an old one."""
    block, x = fuse_for_cpu(filled(RepMixerBlock(6, hidden_dim=9))).train(), noise(2, 6, 5, 4)
    prune.l1_unstructured(block.ffn.fc2, "weight", amount=0.5)
    optimizer, losses = torch.optim.SGD(block.parameters(), lr=1e-3), []
    for _ in range(3):
        y = block(x)
        y.square().sum().backward()
        losses.append(float(y.detach().square().sum()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[1] < losses[0]

"""What every block promises, held for all of them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mobileclip import blocks, reparameterize
from mobileclip.reparam import LayerScale, foldable_modules
from tests.blocks.contract import CASES
from tests.blocks.filling import filled

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def test_the_table_has_every_block():
    exported = {value for name in blocks.__all__ if isinstance(value := getattr(blocks, name), type)}
    modules = {cls for cls in exported if issubclass(cls, nn.Module)}
    assert {type(case.make()) for case in CASES.values()} == modules


def test_output_shape(case):
    block = case.make()
    for mode in (True, False):
        assert block.train(mode)(*case.inputs()).shape == case.output
    assert block.eval()(*case.inputs(batch=1)).shape == (1, *case.output[1:])


def test_gradients_reach_every_parameter_and_the_input(case):
    block, inputs = filled(case.make()).train(), case.inputs(batch=3)
    inputs[0].requires_grad_()
    y = block(*inputs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weight).sum().backward()
    for name, tensor in [*block.named_parameters(), ("input", inputs[0])]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def test_state_dict_round_trip(case):
    block, other, inputs = filled(case.make()), case.make().eval(), case.inputs()
    other.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(other(*inputs), block(*inputs))


def test_copies_and_pickles_compute_the_same(case):
    block, inputs = filled(case.make()), case.inputs()
    for module in (block, reparameterize(block)):
        expected = module(*inputs)
        assert torch.equal(copy.deepcopy(module)(*inputs), expected)
        assert torch.equal(pickle.loads(pickle.dumps(module))(*inputs), expected)


def test_folded_equals_unfolded_and_nothing_foldable_is_left(case):
    block, inputs = filled(case.make()).double(), case.inputs(dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    folded = reparameterize(block)
    torch.testing.assert_close(folded(*inputs), block(*inputs), **EXACT)
    assert not list(foldable_modules(folded))
    assert not any(isinstance(module, (nn.BatchNorm2d, LayerScale)) for module in folded.modules())
    torch.testing.assert_close(reparameterize(folded)(*inputs), block(*inputs), **EXACT)
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_stays_near(case, dtype):
    block, inputs = filled(case.make()), case.inputs()
    expected = block(*inputs)
    half = copy.deepcopy(block).to(dtype)
    for module in (half, reparameterize(half)):
        y = module(inputs[0].to(dtype), *inputs[1:])
        assert y.dtype == dtype
        bound = 0.03 if dtype == torch.bfloat16 else 0.004
        assert (y.detach().float() - expected.detach()).norm() < bound * expected.detach().norm()


@pytest.mark.parametrize("form", ["training", "folded"])
def test_export(case, form):
    block, inputs = filled(case.make()), case.inputs()
    if form == "folded":
        block = reparameterize(block)
    exported = torch.export.export(block, inputs).module()
    other = case.inputs(seed=1)
    torch.testing.assert_close(exported(*other), block(*other), rtol=1e-5, atol=1e-6)


def test_built_from_a_seed(case):
    """Initialisation draws from PyTorch's generator alone."""
    blocks = []
    for _ in range(2):
        torch.manual_seed(3)
        blocks.append(case.make().state_dict())
    assert all(torch.equal(tensor, blocks[1][name]) for name, tensor in blocks[0].items())

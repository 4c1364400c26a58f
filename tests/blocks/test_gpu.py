"""Every block on a GPU: what the CPU computes, its gradients, its folded form, and half precisions."""

import copy

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.blocks import Attention
from tests.blocks.contract import CASES
from tests.blocks.filling import filled, noise

pytestmark = pytest.mark.gpu


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def inputs_on(device, case, **choices):
    return tuple(one.to(device) for one in case.inputs(**choices))


def test_values_and_gradients_are_those_of_the_cpu(case, gpu):
    results = []
    for device in (torch.device("cpu"), gpu):
        block = filled(case.make()).double().to(device).train()
        inputs = inputs_on(device, case, batch=3, dtype=torch.float64)
        inputs[0].requires_grad_()
        y = block(*inputs)
        assert y.device.type == device.type
        (y * noise(*y.shape, seed=1, dtype=torch.float64).to(device)).sum().backward()
        gradients = {name: parameter.grad.cpu() for name, parameter in block.named_parameters()}
        results.append((y.detach().cpu(), inputs[0].grad.cpu(), gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_folded_equals_unfolded(case, gpu):
    block = filled(case.make()).double().to(gpu)
    inputs = inputs_on(gpu, case, dtype=torch.float64)
    folded = reparameterize(block)
    assert {tensor.device.type for tensor in folded.state_dict().values()} <= {gpu.type}
    torch.testing.assert_close(folded(*inputs), block(*inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precisions_stay_near(case, dtype, bound, gpu):
    block = filled(case.make())
    expected = block.double()(*case.inputs(dtype=torch.float64)).detach()
    half = copy.deepcopy(block).to(gpu, dtype)
    for module in (half, reparameterize(half)):
        y = module(*inputs_on(gpu, case, dtype=dtype))
        assert y.dtype == dtype
        assert (y.detach().cpu().double() - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_xformers_trains_as_with_sdpa(causal, gpu):
    import xformers  # noqa: F401

    results = []
    for backend in ("sdpa", "xformers"):
        block = filled(Attention(64, num_heads=2, causal=causal, backend=backend)).to(gpu)
        x = noise(2, 77, 64).to(gpu).requires_grad_()
        y = block(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)

"""The losses on a GPU, tile by tile: value and gradients of the dense formula, and half precisions."""

from functools import partial

import pytest
import torch

from mobileclip.losses import dense_loss
from tests.losses.embeddings import SPECS, random_batch

pytestmark = pytest.mark.gpu

each_loss = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def on(device, inputs):
    return {name: value.detach().to(device).requires_grad_(value.requires_grad) for name, value in inputs.items()}


@each_loss
@pytest.mark.usefixtures("each_size")
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_tiles_equal_the_formula(spec, batch, gpu):
    inputs = on(gpu, random_batch(spec, batch))
    scale = torch.tensor(9.0, dtype=torch.float64, device=gpu, requires_grad=True)
    loss = spec.build().double().to(gpu)
    wanted = [value for value in inputs.values() if value.requires_grad] + [scale, *loss.parameters()]
    found, expected = (
        [(total := call(**inputs, logit_scale=scale).total).detach(), *torch.autograd.grad(total, wanted)]
        for call in (loss, partial(dense_loss, spec, **dict(loss.named_parameters())))
    )
    assert found[0].device.type == gpu.type
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_less_than_float64_is_summed_in_float32(spec, dtype, gpu):
    inputs = on(gpu, random_batch(spec, 300, dim=16, dtype=dtype))
    loss = spec.build().to(gpu)
    with torch.autocast(gpu.type, dtype=torch.bfloat16):
        total = loss(**inputs, logit_scale=torch.tensor(50.0, device=gpu)).total
    assert total.dtype == torch.float32
    total.backward()
    assert inputs["text"].grad.dtype == dtype
    exact = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in inputs.items()}
    expected = spec.build().double().to(gpu)(**exact, logit_scale=50.0).total
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    error = (inputs["text"].grad.double() - exact["text"].grad).norm() / exact["text"].grad.norm()
    assert error < {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]

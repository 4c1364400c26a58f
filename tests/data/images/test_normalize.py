"""Pixels become a model's input as torchvision makes it, in whatever order they lie in memory."""

import numpy as np
import pytest
import torch

from mobileclip.data import ImageTransform, normalize_pixels
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from tests.errors import fails
from tests.lazily import lazily

F = lazily("torchvision.transforms.functional")

CONTRACTS = {
    "plain": ImageInput(size=16),
    "openai": ImageInput(size=16, mean=OPENAI_MEAN, std=OPENAI_STD),
    "imagenet": ImageInput(size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": ImageInput(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}
# Every value in every channel.
PIXELS = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2) for _ in range(4)])


@pytest.fixture(params=CONTRACTS)
def contract(request):
    return CONTRACTS[request.param]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_torchvision_to_the_bit(contract, order, memory_format):
    pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous(memory_format=order)
    before = pixels.clone()
    images = normalize_pixels(pixels, contract, memory_format=memory_format)
    theirs = [F.normalize(F.to_tensor(one), contract.mean, contract.std) for one in PIXELS]
    assert torch.equal(images, torch.stack(theirs))
    assert images.is_contiguous(memory_format=memory_format)
    assert images.dtype == torch.float32
    assert torch.equal(pixels, before)
    assert torch.equal(images, torch.stack([ImageTransform(contract).normalize(one) for one in PIXELS]))


@pytest.mark.gpu
def test_a_gpu_normalises_alike(contract, gpu):
    pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    images = normalize_pixels(pixels.to(gpu), contract).cpu()
    torch.testing.assert_close(images, normalize_pixels(pixels, contract), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 4), torch.uint8), ((4, 3, 3), torch.uint8), ((2, 4, 4, 3), torch.uint8), ((1, 3, 4, 4), torch.float32)],
)
def test_what_is_no_batch_of_pixels_is_refused(shape, dtype):
    with fails(ValueError, str(dtype) if dtype.is_floating_point else "", str(shape)):
        normalize_pixels(torch.zeros(shape, dtype=dtype), CONTRACTS["plain"])

"""The memory of a batch's images: copied once, and shared where a worker fills it."""

import numpy as np
import torch

from mobileclip.data.loading.batch import empty_shared, stack_pixels


def test_images_are_stacked_as_they_lie():
    images = [np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8) for seed in range(4)]
    batch = stack_pixels(images)
    assert batch.shape == (4, 3, 5, 7)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch.permute(0, 2, 3, 1).numpy().tobytes() == np.stack(images).tobytes()
    assert not any(np.shares_memory(batch.numpy(), image) for image in images)


def test_shared():
    batch = empty_shared((2, 4, 3, 3))
    assert batch.is_shared()
    assert batch.dtype == torch.uint8
    assert batch.shape == (2, 4, 3, 3)
    assert batch.is_contiguous()
    assert batch.untyped_storage().nbytes() == 72

"""The memory of a batch's images: copied once, and shared where a worker fills it."""

import torch

from mobileclip.data.loading.batch import empty_shared


def test_shared():
    batch = empty_shared((2, 4, 3, 3))
    assert batch.is_shared()
    assert batch.dtype == torch.uint8
    assert batch.shape == (2, 4, 3, 3)
    assert batch.is_contiguous()
    assert batch.untyped_storage().nbytes() == 72

"""The memory of a batch's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from mobileclip.data.images.resize import Pixels


_is_shared = False


def share_images() -> None:
    """Have all images of this process put where another one reads them; a worker does."""
    global _is_shared  # noqa: PLW0603 - of this process
    _is_shared = True


def stack_pixels(pixels: Sequence[Pixels]) -> torch.Tensor:
    """Return the pixels of several images as one batch; a worker's is one that another process reads without a copy.

    It is as images are decoded and resized, channels innermost in memory: putting them in front takes four times as
    long as copying, and the device does it by the way when it normalises.

    Shape: B times (height, width, 3), uint8 -> (B, 3, height, width), uint8, in the order of `torch.channels_last`.

    Args:
        pixels: of images of one size.
    """
    shape = (len(pixels), *pixels[0].shape)
    batch = empty_shared(shape) if _is_shared else torch.empty(shape, dtype=torch.uint8)
    np.stack(pixels, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)


def empty_shared(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a uint8 tensor that holds anything, where another process can read it without a copy."""
    new_shared = torch.UntypedStorage._new_shared  # noqa: SLF001  what torch's own collate function calls
    storage = new_shared(int(np.prod(shape)), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).resize_(shape)

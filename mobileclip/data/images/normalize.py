"""Pixels to the input of an image tower: one function, for images one by one and in batches, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mobileclip.inputs import ImageInput


def normalize_pixels(
    pixels: Tensor, image: ImageInput, *, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Return pixels as the tower takes them, on the device where they are.

    `(pixel / 255 - mean) / std`

    Shape: (..., channels, height, width), uint8 -> the same, float32.

    Args:
        pixels: 0 to 255, such as `Batch.image`; in any order in memory.
        image: the contract that mean and std are taken from.
        memory_format: order of the result in memory; `torch.channels_last` is for batches.

    Raises:
        ValueError: if the pixels are not uint8 with the contract's channels in front of height and width.

    Examples:
        >>> pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 3, 1, 3)
        >>> normalize_pixels(pixels, mobileclip.inputs.ImageInput(size=3, mean=(0.5, 0, 0), std=(0.5, 1, 1)))[0, :2, 0]
        tensor([[-1.0000, -0.6000,  1.0000],
                [ 0.0000,  0.2000,  1.0000]])
    """
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-3] != image.channels:
        raise ValueError(
            f"expected uint8 pixels of shape (..., {image.channels}, height, width), got {pixels.dtype} "
            f"{tuple(pixels.shape)}"
        )
    normalized = pixels.to(torch.float32, memory_format=memory_format).div_(255)
    for number, (mean, std) in enumerate(zip(image.mean, image.std, strict=True)):
        # Numbers and not tensors of them: these would be copied to the device, which waits for it.
        channel = normalized.select(-3, number)
        if mean:
            channel.sub_(mean)
        if std != 1:
            channel.div_(std)
    return normalized

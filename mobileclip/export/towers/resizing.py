"""Resizing and cropping inside an exported file: pictures of any size come in, as they were decoded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.inputs import MAX_SIZE, ImageInput


def sides_of_pictures() -> dict[int, torch.export.Dim]:
    """Return the sides that may have any length, by axis; one of 1 would be taken for a constant."""
    return {axis: torch.export.Dim(name, min=2, max=MAX_SIZE) for axis, name in ((2, "height"), (3, "width"))}


def resized(pixels: Tensor, image: ImageInput) -> Tensor:
    """Return pictures with the shorter side resized to the model's size, antialiased, and the centre cropped.

    Shape:
        `(batch, 3, height, width)`, uint8 -> `(batch, 3, size, size)`, float32, whole numbers in [0, 255].

    Args:
        pixels: of pictures that have one size.
        image: the model's input.

    Source: `ImageTransform`, whose resize is Pillow's: first the width, then the height, rounded after each.
    Differs: weights are float32, and Pillow's have 22 bits, so that a pixel may differ by one level of 255.
    """
    size, (own_height, own_width) = image.size, pixels.shape[-2:]
    height, width = (
        torch.sym_max(size, size * one // other)  # type: ignore[no-untyped-call]
        for one, other in ((own_height, own_width), (own_width, own_height))
    )
    values = pixels.to(torch.float32)
    for sides in ((own_height, width), (height, width)):
        values = F.interpolate(values, size=sides, mode=image.interpolation, antialias=True)
        values = values.round().clamp(0, _LARGEST_PIXEL)
    return values.narrow(2, _margin(height - size), size).narrow(3, _margin(width - size), size)


def _margin(rest: int) -> int:
    """Return half of what is cut off; a half goes to the even number, as Python rounds."""
    half = rest // 2
    return half + (rest - 2 * half) * (half - 2 * (half // 2))

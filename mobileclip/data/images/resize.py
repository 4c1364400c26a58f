"""Pictures resized: by Pillow, as the models were trained, or by torch in half the time, within three levels of it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from mobileclip.inputs import Interpolation

Pixels = npt.NDArray[np.uint8]
Filter = Literal["bilinear", "bicubic", "lanczos"]

# Of the output: keeps a size that is a whole number from being rounded below itself.
_SLACK = 0.01


def resize(
    image: Image.Image,
    size: tuple[int, int],
    interpolation: Filter,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Return an image at another size, antialiased: replay, transforms and pages resize by this, and by Pillow.

    Args:
        image: any.
        size: width and height, in pixels.
        interpolation: the filter; `lanczos` is for people to look at.
        box: left, top, right and bottom of the part that is taken, in pixels; None for all of it.
    """
    return image.resize(size, Image.Resampling[interpolation.upper()], box)


def resized_crop(
    image: Image.Image | Pixels, box: tuple[float, float, float, float], size: int, interpolation: Interpolation
) -> Image.Image:
    """Return a crop of an image, resized with antialiasing to `size` x `size`: training's, with `decode="fast"`.

    The box may lie between pixels, as a crop of an image that was decoded at a part of its size does. Its width and
    height are kept as they are; it begins at the nearest quarter of a pixel, where neighbours are mixed linearly.

    Args:
        image: RGB, or its pixels (height, width, 3).
        box: left, top, width and height in pixels; begins in the image.
        size: side of the output, in pixels.
        interpolation: the filter.
    """
    left, top, width, height = box
    (first, end, right), (above, below, down) = _span(left, width), _span(top, height)
    pixels = _cut(image, first, above, end, below)
    if right and pixels.shape[1] > 1:
        pixels = _mix(pixels[:, :-1], pixels[:, 1:], right, up=False)
    if down and pixels.shape[0] > 1:
        pixels = _mix(pixels[:-1], pixels[1:], down, up=True)
    missing = math.ceil(height) - pixels.shape[0], math.ceil(width) - pixels.shape[1]
    if any(missing):
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
    channels_last = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(
        channels_last,
        scale_factor=((size + _SLACK) / height, (size + _SLACK) / width),
        mode=interpolation,
        antialias=True,
    )
    return Image.fromarray(resized[0, :, :size, :size].permute(1, 2, 0).contiguous().numpy())


def _cut(image: Image.Image | Pixels, left: int, top: int, right: int, bottom: int) -> Pixels:
    """Return the pixels of a box, as far as the image reaches."""
    if isinstance(image, Image.Image):
        return np.array(image.crop((left, top, min(right, image.width), min(bottom, image.height))))
    return image[top:bottom, left:right]


def _span(start: float, length: float) -> tuple[int, int, int]:
    """Return the pixels that a length covers, first and end, and the quarters of a pixel by which it starts later."""
    first, quarters = divmod(round(4 * start), 4)
    return first, first + math.ceil(length) + (quarters > 0), quarters


def _mix(first: Pixels, second: Pixels, quarters: int, *, up: bool) -> Pixels:
    """Return so many quarters of the second array and the rest of the first."""
    if quarters == 2:
        return _mean(first, second, up=up)
    return _mean(first if quarters == 1 else second, _mean(first, second, up=not up), up=up)


def _mean(first: Pixels, second: Pixels, *, up: bool) -> Pixels:
    """Return the mean of two arrays, rounded up or down, without a wider type."""
    half: Pixels = np.right_shift(first ^ second, np.uint8(1))
    return (first | second) - half if up else (first & second) + half

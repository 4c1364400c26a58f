"""Resizing images with Pillow or, in half the time, with torch, and converting images to RGB.

`ImageTransform` in `mobileclip.data.images.transform` calls these functions.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from mobileclip.data.images.limits import ImageError
from mobileclip.inputs import Color, Interpolation

Pixels = npt.NDArray[np.uint8]
Filter = Literal["bilinear", "bicubic", "lanczos"]

# Added to the output size, so that rounding errors do not reduce an integer size by one.
_SLACK = 0.01
# Support of each filter to either side, in pixels of the smaller image.
_SUPPORT: dict[Filter, float] = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
# Ratio of height to width above which an image is tall. Pillow 13 swaps its two passes for ratios above 2, earlier
# versions for ratios above 100.
_TALL = 1.9
# Number of pixels that are resized together, so that copies stay in the processor's cache.
_STRIP_PIXELS = 2**18


def resize(
    image: Image.Image,
    size: tuple[int, int],
    interpolation: Filter,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resize an image with Pillow, with antialiasing.

    Args:
        image: image of any mode.
        size: width and height, in pixels.
        interpolation: filter; `lanczos` is only for display.
        box: left, top, right and bottom of the source region, in pixels; None for the whole image.
    """
    return image.resize(size, Image.Resampling[interpolation.upper()], box)


@attrs.frozen(kw_only=True)
class Centre:
    """The central square of a resized image.

    Args:
        width: width of the resized image, in pixels.
        height: height of the resized image, in pixels.
        left: left edge of the square, in pixels.
        top: top edge of the square, in pixels.
        side: side of the square, in pixels.
    """

    width: int
    height: int
    left: int
    top: int
    side: int

    def rows(self, size: tuple[int, int], interpolation: Filter) -> tuple[int, int]:
        """Return the start and the exclusive end of the rows that the square needs from an image of `size`."""
        if _is_tall(*size):
            return 0, size[1]
        height = size[1]
        scale = height / self.height
        reach = _SUPPORT[interpolation] * max(scale, 1.0) + 2
        first = math.floor((self.top + 0.5) * scale - reach)
        end = math.ceil((self.top + self.side - 0.5) * scale + reach)
        return max(first, 0), min(end, height)


def resize_centre(image: Image.Image | Pixels, height: int, centre: Centre, interpolation: Filter) -> Pixels:
    """Resize only the centre of an image, with the same bits as `resize` followed by a crop.

    Pillow resizes rows first, rounds to 8 bits, and then resizes columns. This function calls Pillow in the same order
    for the needed rows only. Some releases of Pillow resize the columns of tall images first, so this
    function resizes tall images completely.

    Args:
        image: an RGB image, or pixels (height, width, 3) in any memory order; rows after the end of `centre.rows` may
            be missing.
        height: height of the whole image, in pixels.
        centre: size of the resized image, and the square to return.
        interpolation: filter, such as `bicubic`.
    """
    width = image.width if isinstance(image, Image.Image) else image.shape[1]
    columns, lines = (slice(start, start + centre.side) for start in (centre.left, centre.top))
    if _is_tall(width, height):
        whole = resize(_rows(image, 0, height), (centre.width, centre.height), interpolation)
        return np.asarray(whole)[lines, columns].copy()
    first, end = centre.rows((width, height), interpolation)
    edges = [*range(first, end, max(1, _STRIP_PIXELS // width)), end]
    narrow: Pixels = np.zeros((height, centre.side, 3), dtype=np.uint8)

    for top, bottom in pairwise(edges):
        strip = resize(_rows(image, top, bottom), (centre.width, bottom - top), interpolation)
        narrow[top:bottom] = np.asarray(strip)[:, columns]
    low = resize(Image.fromarray(narrow), (centre.side, centre.height), interpolation)
    return np.asarray(low)[lines].copy()


def resize_reduced_centre(
    image: Image.Image | Pixels, size: tuple[float, float], centre: Centre, interpolation: Filter
) -> Pixels:
    """Resize, in one pass, the centre of an image that was decoded at a reduced size.

    Args:
        image: an RGB image, or pixels (height, width, 3); rows below the centre may be missing.
        size: exact width and height of the reduced image, in pixels, before the decoder rounds up.
        centre: size of the resized image, and the square to return.
        interpolation: filter, such as `bicubic`.
    """
    across, down = size[0] / centre.width, size[1] / centre.height
    # Rounding must not move the box out of the image.
    right = min((centre.left + centre.side) * across, size[0])
    bottom = min((centre.top + centre.side) * down, size[1])
    box = (centre.left * across, centre.top * down, right, bottom)
    found = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.array(resize(found, (centre.side, centre.side), interpolation, box))


def _is_tall(width: int, height: int) -> bool:
    return height > _TALL * width


def _rows(image: Image.Image | Pixels, top: int, bottom: int) -> Image.Image:
    if not isinstance(image, Image.Image):
        return Image.fromarray(image[top:bottom])
    return image if (top, bottom) == (0, image.height) else image.crop((0, top, image.width, bottom))


def resized_crop(
    image: Image.Image | Pixels, box: tuple[float, float, float, float], size: int, interpolation: Interpolation
) -> Image.Image:
    """Crop an image, and resize the crop to `size` x `size` with antialiasing, for `decode="fast"`.

    The box may have fractional coordinates, because the image may have been decoded at a reduced size. Width and height
    stay exact; left and top are rounded to quarters of a pixel, where pixels are interpolated linearly.

    Args:
        image: an RGB image, or pixels (height, width, 3).
        box: left, top, width and height in pixels; the top left corner is inside the image.
        size: side of the output, in pixels.
        interpolation: filter, such as `bicubic`.
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
    """Return the pixels of a box, clipped to the image."""
    if isinstance(image, Image.Image):
        return np.array(image.crop((left, top, min(right, image.width), min(bottom, image.height))))
    return image[top:bottom, left:right]


def _span(start: float, length: float) -> tuple[int, int, int]:
    """Return the first and the exclusive end pixel of an interval, and the start's offset in quarters of a pixel."""
    first, quarters = divmod(round(4 * start), 4)
    return first, first + math.ceil(length) + (quarters > 0), quarters


def _mix(first: Pixels, second: Pixels, quarters: int, *, up: bool) -> Pixels:
    """Mix two arrays: `quarters` / 4 of the second array and 1 - `quarters` / 4 of the first array."""
    if quarters == 2:
        return _mean(first, second, up=up)
    return _mean(first if quarters == 1 else second, _mean(first, second, up=not up), up=up)


def _mean(first: Pixels, second: Pixels, *, up: bool) -> Pixels:
    """Return the mean of two arrays, rounded up or down; no wider dtype is needed."""
    half: Pixels = np.right_shift(first ^ second, np.uint8(1))
    return (first | second) - half if up else (first & second) + half


_MOST_16_BIT, _MOST_8_BIT = 65535, 255


def in_rgb(image: Image.Image, background: Color | None, name: str) -> Image.Image:
    """Convert an image to RGB; an opaque RGB image is returned unchanged.

    Args:
        image: decoded image.
        background: colour behind transparent pixels; None drops the alpha channel.
        name: name of the image, for messages.

    Raises:
        ImageError: if the image's mode cannot be converted, or the range of the image's values is unknown.
    """
    if image.mode.startswith("I"):
        return _from_16_bit(image, background, name)
    if image.mode == "F":
        raise ImageError("unsupported_mode", f"{name} contains floats of unknown range; scale them to 8 bits first")
    try:
        if background is not None and image.has_transparency_data:
            below = Image.new("RGBA", image.size, background)
            below.alpha_composite(image.convert("RGBA"))
            return below.convert("RGB")
        if image.mode == "RGB":
            return image
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except ValueError as error:
        raise ImageError(
            "unsupported_mode", f"{name} has mode {image.mode!r}, which cannot be converted to RGB ({error})"
        ) from error


def _from_16_bit(image: Image.Image, background: Color | None, name: str) -> Image.Image:
    """Scale [0, 65535] to [0, 255], rounded to the nearest integer."""
    values = np.asarray(image)
    least, most = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if not 0 <= least <= most <= _MOST_16_BIT:
        raise ImageError(
            "unsupported_mode",
            f"{name} contains integers from {least} to {most}, beyond the range of 16 bits; scale the image to 8 bits "
            "first",
        )
    if image.mode == "I" and 0 < most <= _MOST_8_BIT:
        raise ImageError(
            "unsupported_mode",
            f"{name} has mode I with 32-bit integers up to {most}, so the depth may be 8 or 16 bits; convert the "
            "image to 8 bits with Image.fromarray(numpy.asarray(image).astype('uint8'))",
        )
    wide = values.astype(np.uint32)
    wide *= _MOST_8_BIT
    wide += _MOST_16_BIT // 2
    wide //= _MOST_16_BIT
    scaled = Image.fromarray(wide.astype(np.uint8)).convert("RGB")
    hidden = image.info.get("transparency")
    if background is not None and hidden is not None:
        scaled.paste(background, mask=Image.fromarray(np.where(values == hidden, 255, 0).astype(np.uint8)))
    return scaled

"""Converts images of every mode to RGB: transparency over a background, 16 bits scaled to 8."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mobileclip.data.images.limits import ImageError
from mobileclip.inputs import Color

_MOST_16_BIT, _MOST_8_BIT = 65535, 255
# Images of 16 bits are scaled so many pixels at a time.
_STRIP_PIXELS = 2**20


def in_rgb(image: Image.Image, background: Color | None, name: str) -> Image.Image:
    """Return an image in RGB; one that is in RGB already, without transparency, is returned itself.

    Args:
        image: decoded.
        background: colour below what is transparent; None drops the transparency.
        name: of the image, for messages.

    Raises:
        ImageError: if its mode has no RGB, or the range of its values is not known.
    """
    if image.mode.startswith("I"):
        return _from_16_bit(image, background, name)
    if image.mode == "F":
        raise ImageError("unsupported_mode", f"{name} holds floats of unknown range; scale it to 8 bits first")
    try:
        if background is not None and image.has_transparency_data:
            below = Image.new("RGBA", image.size, background)
            below.alpha_composite(image.convert("RGBA"))
            return below.convert("RGB")
        if image.mode == "RGB":
            return image
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except ValueError as error:
        raise ImageError("unsupported_mode", f"{name} has mode {image.mode!r}, which has no RGB ({error})") from error


def _from_16_bit(image: Image.Image, background: Color | None, name: str) -> Image.Image:
    """Scale [0, 65535] to [0, 255], rounded to the nearest."""
    scaled = Image.new("RGB", image.size)
    hidden = image.info.get("transparency")
    num_rows = max(1, _STRIP_PIXELS // max(1, image.width))
    greatest = 0
    for top in range(0, image.height, num_rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + num_rows, image.height))))
        least, most = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if not 0 <= least <= most <= _MOST_16_BIT:
            raise ImageError(
                "unsupported_mode",
                f"{name} holds integers from {least} to {most}, more than 16 bits; scale it to 8 bits first",
            )
        greatest = max(greatest, most)
        strip = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // _MOST_16_BIT).astype(np.uint8))
        scaled.paste(strip.convert("RGB"), (0, top))
        if background is not None and hidden is not None:
            scaled.paste(background, (0, top), Image.fromarray(np.where(values == hidden, 255, 0).astype(np.uint8)))
    if image.mode == "I" and 0 < greatest <= _MOST_8_BIT:
        raise ImageError(
            "unsupported_mode",
            f"{name} has mode I, 32-bit integers, and none above {greatest}: nothing tells whether they are of 8 bits "
            "or dark ones of 16; make it an image of 8 bits with Image.fromarray(numpy.asarray(image).astype('uint8'))",
        )
    return scaled

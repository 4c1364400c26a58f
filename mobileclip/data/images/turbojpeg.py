"""JPEGs decoded straight into an array by simplejpeg, where it is installed (extra `speed`).

Both it and Pillow decode by libjpeg-turbo, to the same pixels; Pillow's way into an array is longer.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

from mobileclip.data.images.resize import Pixels
from mobileclip.machine import raise_machine_fault


def decode_jpeg(data: bytes, size: tuple[int, int], *, reduce: int, strict: bool) -> Pixels | None:
    """Return the pixels of a JPEG, or None where Pillow has to look at it: it is damaged, or simplejpeg is missing.

    Shape: (height, width, 3), uint8.

    Args:
        data: a JPEG, grey or of three colours.
        size: its width and height, in pixels.
        reduce: 1, or 2, 4 or 8 to decode it at that part of its size, rounded up.
        strict: whether bytes that belong to no row are damage.
    """
    library = _library()
    if library is None:
        return None
    width, height = (-(-side // reduce) for side in size)
    try:
        pixels: Pixels = library.decode_jpeg(data, "RGB", min_width=width, min_height=height, strict=strict)
    except Exception as error:  # noqa: BLE001  Pillow says what is wrong with it
        raise_machine_fault(error)
        return None
    return pixels if pixels.shape == (height, width, 3) else None


@cache
def _library() -> ModuleType | None:
    try:
        import simplejpeg as library
    except ImportError:
        return None
    found: ModuleType = library
    return found

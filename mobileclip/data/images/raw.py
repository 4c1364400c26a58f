"""Raw files of cameras: the JPEG that the camera put into them, which is the picture as its screen showed it.

What the sensor saw is not developed: that takes seconds, and looks otherwise with every program.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image

from mobileclip.data.images.guard import TiffTags
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.extras import needed

# Of Canon, Olympus and Panasonic; the others are told from a TIFF by its tags.
_START = re.compile(rb"(?s)II\*\0.{4}CR|II(?:RO|RS|U\0)|MMOR")
_TIFF = (b"II*\0", b"MM\0*")
_REDUCED, _SEVERAL_BELOW, _DNG = 254, 330, 50706


def raw_preview(data: bytes, limits: ImageLimits, name: str) -> bytes | None:
    """Return the picture in a raw file as a file of its own, most often a JPEG; None if it is no raw file.

    Args:
        data: the file.
        limits: of its tags.
        name: of the image, for messages.

    Raises:
        ImageError: if there is no picture in it, or it is damaged; with the reason `missing_package` if rawpy is not
            installed.
    """
    if not _is_raw(data, limits, name):
        return None
    limits.check_file(len(data), name)
    try:
        with needed("reading raw files of cameras", "raw"):
            import rawpy
    except ImportError as error:
        raise ImageError("missing_package", f"{name} cannot be read: {error}", install=str(error)) from None
    try:
        with rawpy.imread(io.BytesIO(data)) as opened:
            found = opened.extract_thumb()
    except rawpy.LibRawError as error:
        reason = str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
        raise ImageError("corrupt", f"{name} is a raw file without a picture that can be read: {reason}") from error
    if found.format == rawpy.ThumbFormat.JPEG:
        return bytes(found.data)
    stream = io.BytesIO()
    Image.fromarray(np.asarray(found.data)).save(stream, "BMP")
    return stream.getvalue()


def _is_raw(data: bytes, limits: ImageLimits, name: str) -> bool:
    """Return whether a file is a raw one: by its start, or a TIFF that is a small picture above a larger one."""
    if _START.match(data):
        return True
    if not data.startswith(_TIFF):
        return False
    try:
        tags = TiffTags(data, limits, name)
        is_reduced = tags.numbers(_REDUCED, 0)[0] & 1 == 1
    except (ImageError, struct.error, IndexError, OverflowError):
        return False  # whoever reads it as a TIFF says what is wrong with it
    return _DNG in tags or (is_reduced and _SEVERAL_BELOW in tags)

"""Contact sheets as commands write them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobileclip.storage import atomic_write, require_output

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def require_sheet(path: Path | None, *, overwrite: bool) -> None:
    """Refuse a sheet that could not be written, before the work.

    Args:
        path: of the sheet; None where none is asked for.
        overwrite: whether one that is there is replaced.

    Raises:
        ValueError, OSError: if it cannot.
    """
    if path is not None:
        require_output(path, overwrite=overwrite, suffixes=_FORMATS)


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet in the format that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        sheet.save(stream, format=_FORMATS[path.suffix.lower()])

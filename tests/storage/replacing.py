"""A folder that is replaced, in a process of its own."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

from mobileclip import storage


def replace_data(parent: str, can_exchange: bool) -> None:
    """Replace a folder; a disk that cannot exchange names is stood for by a C library that does not know how."""
    if not can_exchange:
        ctypes.CDLL = lambda *_, **__: SimpleNamespace()
    with storage.atomic_folder(Path(parent) / "data", overwrite=True) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "new").write_text("new")
        (folder / "new").write_text("new")

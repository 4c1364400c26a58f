"""A folder that is replaced, in a process of its own."""

from pathlib import Path

from mobileclip import storage
from mobileclip.storage import atomic


def replace_data(parent: str, can_exchange: bool) -> None:
    """Replace a folder; a disk that cannot exchange names is stood for by a kernel that does not know how."""
    if not can_exchange:
        atomic._exchange_call = lambda: None
    with storage.atomic_folder(Path(parent) / "data", overwrite=True) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "new").write_text("new")
        (folder / "new").write_text("new")

"""A folder that is replaced, in a process of its own."""

from pathlib import Path

from mobileclip import storage


def replace_data(parent: str) -> None:
    """Replace a folder."""
    with storage.atomic_folder(Path(parent) / "data", overwrite=True) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "new").write_text("new")
        (folder / "new").write_text("new")

"""Which of several output files is which, by suffix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from mobileclip.storage import require_output


def outputs(given: Sequence[Path], *kinds: Collection[str], overwrite: bool) -> list[Path | None]:
    """Return the file of each kind that is to be written, having made sure that it can be.

    Args:
        given: behind `--output`, each time.
        kinds: how the names of each kind end; none for any name.
        overwrite: whether what is there is replaced.

    Raises:
        ValueError, OSError: if a name is of no kind, two are of one, or one cannot be written.
    """
    found: list[Path | None] = [None] * len(kinds)
    for path in given:
        place = next((at for at, kind in enumerate(kinds) if not kind or path.suffix.lower() in kind), None)
        if place is None:
            suffixes = " or ".join(suffix for kind in kinds for suffix in kind)
            raise ValueError(f"{path} cannot be written: its name must end with {suffixes}")
        if found[place] is not None:
            raise ValueError(f"--output is {found[place]} and {path}, which are of one kind; give one of them")
        require_output(path, overwrite=overwrite)
        found[place] = path
    return found


def require_page(path: Path | None, *, overwrite: bool) -> None:
    """Refuse a page that could not be written, before the work.

    Args:
        path: of the page; None where none is asked for.
        overwrite: whether one that is there is replaced.

    Raises:
        ValueError, OSError: if it cannot.
    """
    if path is not None:
        require_output(path, overwrite=overwrite, suffixes=(".html",))

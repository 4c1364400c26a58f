"""Checks whether indexed files still exist."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable


class Presence:
    """Files that are looked for, a folder that is gone once for all of its files."""

    def __init__(self) -> None:
        self._gone: dict[str, bool] = {}

    def __contains__(self, path: str) -> bool:
        """Return whether a file is there; one of which the system does not say it is gone counts as there."""
        folder = os.path.dirname(path)  # noqa: PTH120 - texts, of any number
        if folder not in self._gone:
            self._gone[folder] = not _is_there(folder, stat.S_ISDIR)
        return not self._gone[folder] and _is_there(path, stat.S_ISREG)


def lies_in(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or lies below it, by their names."""
    return path == folder or path.startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def _is_there(path: str, is_kind: Callable[[int], bool]) -> bool:
    try:
        return is_kind(os.stat(path).st_mode)  # noqa: PTH116 - once for each of very many
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True

"""The user's state folder on this machine, where the system keeps such files."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path | None:
    """Return the user's folder for program state, which may not exist yet; None where there is no user.

    `XDG_STATE_HOME/mobileclip`, by default in `~/.local/state`.

    Source: the XDG Base Directory Specification.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    if given and Path(given).is_absolute():
        return Path(given) / "mobileclip"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".local" / "state" / "mobileclip" if home.is_absolute() else None


def cache_folder() -> Path | None:
    """Return the user's folder of what can be made again, which need not be there; None where there is no user.

    `XDG_CACHE_HOME/mobileclip`, by default in `~/.cache`.

    Source: the XDG Base Directory Specification.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "mobileclip"
    except RuntimeError:
        return None

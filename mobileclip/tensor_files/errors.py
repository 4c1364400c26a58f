"""The one error of files that hold weights, and how a tensor's name is shown in it."""

from __future__ import annotations

_MAX_SHOWN = 80


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: what is wrong with it, and what to do."""


def shown(name: object) -> str:
    """Return a name from a file as a message shows it: quoted, escaped, and not longer than a line."""
    text = repr(name[: _MAX_SHOWN + 1] if isinstance(name, str) else name)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."

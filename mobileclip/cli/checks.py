"""Checks that every command makes of its arguments before it starts work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mobileclip import storage
from mobileclip.registry import nearest_file


def require_there(path: str | Path, expected: str) -> None:
    """Make sure that something is on this machine; a URL is taken as it is.

    Args:
        path: a file, a folder, or a URL.
        expected: what it should be, for the message.

    Raises:
        FileNotFoundError: if it is not; the message has names nearby that are like it.
    """
    if not str(path).strip():
        raise ValueError(f"a name is empty; expected {expected}")
    if storage.is_remote(path) or storage.local_path(path).exists():
        return
    near = nearest_file(storage.local_path(path))
    raise FileNotFoundError(f"there is no {storage.printable(path)}; expected {expected}{near}")


def require_folder(path: str | Path, expected: str) -> None:
    """Make sure that a folder is on this machine; a URL is taken as it is.

    Args:
        path: a folder, or a URL.
        expected: what it should be, for the message.

    Raises:
        OSError: if it is not.
    """
    require_there(path, expected)
    if not storage.is_remote(path) and not storage.local_path(path).is_dir():
        raise NotADirectoryError(f"{path} is a file; expected {expected}")


def require_file(path: str | Path, expected: str) -> None:
    """Make sure that a file is on this machine; a URL is taken as it is.

    Args:
        path: a file, or a URL.
        expected: what it should be, for the message.

    Raises:
        OSError: if it is not.
    """
    require_there(path, expected)
    if storage.is_remote(path) or storage.local_path(path).is_file():
        return
    if storage.local_path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected {expected}")
    raise ValueError(f"{path} is a pipe or a device, which may never end; expected {expected}")


def require_checkpoint(source: str) -> None:
    """Make sure that a checkpoint is on this machine, a file or the one in a folder; one on the hub is taken as it is.

    Args:
        source: a file, a folder, or `hf-hub:owner/name`.

    Raises:
        OSError: if there is none.
        ValueError: if the folder has no file of weights, or several.
    """
    from mobileclip.encoders.checkpoints import PREFIX, packaged
    from mobileclip.encoders.checkpoints.hub import local_checkpoint
    from mobileclip.encoders.checkpoints.loading import source_of

    if not source.startswith(PREFIX) and source_of(source) is None and packaged(source) is None:
        expected = "a checkpoint, a folder with one, or hf-hub:OWNER/NAME"
        require_there(source, expected)
        require_file(local_checkpoint(source), expected)


def require_at_least(least: int, **numbers: float | None) -> None:
    """Make sure that numbers are not below the least.

    Args:
        least: that each may be.
        numbers: by the name of the option, with underscores; None is one that was not given.

    Raises:
        ValueError: if one is.
    """
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"--{name.replace('_', '-')} is {number}, expected at least {least}")


def without_repeats(paths: Iterable[Path]) -> list[Path]:
    """Return paths in order, each once."""
    return list(dict.fromkeys(paths))

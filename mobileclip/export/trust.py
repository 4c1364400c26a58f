"""Decides which exports are trusted: those this machine wrote, and folders named in `MOBILECLIP_TRUST`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mobileclip import storage
from mobileclip.encoders.checkpoints.published import CONTRACT
from mobileclip.tensor_files import file_sha256
from mobileclip.terminal import get_logger

TRUSTED = "MOBILECLIP_TRUST"
"""Variable of the environment with a folder whose exports are believed, for deployments."""

_REGISTER = "exports.txt"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A line each, the last ones: more than anybody writes, and read in no time.
_MOST, _MOST_BYTES = 20_000, 2**21
_WAIT_SECONDS = 10.0
_logger = get_logger(__name__)


def remember_export(folder: Path) -> None:
    """Take note of an export that was written just now; where that cannot be, `--trust` is needed for it.

    Args:
        folder: of the export.
    """
    place = storage.state_folder()
    if place is None:
        _logger.warning("there is no home folder to remember in that this machine wrote %s", folder)
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        digest = file_sha256(folder / CONTRACT)
        with storage.exclusive(place, wait_seconds=_WAIT_SECONDS):
            known = [one for one in _known(place) if one != digest]
            with storage.atomic_path(place / _REGISTER) as temporary:
                temporary.write_text("".join(f"{one}\n" for one in [*known[1 - _MOST :], digest]), encoding="ascii")
    except OSError as error:
        _logger.warning("that this machine wrote %s cannot be remembered (%s)", folder, error)


def is_believed(folder: Path) -> bool:
    """Return whether an export needs no `--trust`.

    Args:
        folder: of the export.

    Raises:
        ValueError: if what the environment names is no absolute path.
    """
    named = os.environ.get(TRUSTED, "")
    if named and not Path(named).is_absolute():
        raise ValueError(f"{TRUSTED} is {named!r}, expected the absolute path of a folder with exports that you trust")
    if named and folder.resolve().is_relative_to(Path(named).resolve()):
        return True
    return is_written_here(folder)


def is_written_here(folder: Path) -> bool:
    """Return whether this machine's user wrote an export: its contract, which has the SHA-256 of each file, is theirs.

    Args:
        folder: of the export.
    """
    place = storage.state_folder()
    if place is None:
        return False
    try:
        return file_sha256(folder / CONTRACT) in _known(place)
    except OSError:
        return False


def _known(place: Path) -> list[str]:
    data = storage.read_if_there(place / _REGISTER, limit=_MOST_BYTES)
    return _DIGEST.findall(data.decode("ascii", errors="replace")) if data else []

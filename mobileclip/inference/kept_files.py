"""A disk cache of tensors; a damaged file counts as missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

SUFFIX = ".safetensors"
_CHECKSUM, _HEADER = "sha256", "header"


def read_kept(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Return the tensors in a file with their header, to the bit as `write_kept` was given them; else None.

    The file is not mapped, which a bad disk would make a crash.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read, and is made again: %s", path, error)
        return None
    try:
        described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors, header = safetensors.torch.load(data), str(described[_HEADER])
        wrong: object = "its content is not what was written"
        if _checksum(tensors, header) == described[_CHECKSUM]:
            return tensors, header
    except Exception as error:  # noqa: BLE001 - whatever is wrong, making it anew is right
        raise_machine_fault(error)
        wrong = error
    logger.warning("%s is damaged and made again: %s", path, wrong)
    return None


def write_kept(path: Path, tensors: Mapping[str, Tensor], header: str) -> None:
    """Keep what `read_kept` returns; where that cannot be, a warning says so.

    Args:
        path: whose folder is made; the file appears whole or not at all.
        tensors: by name.
        header: text that goes with them.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, {_HEADER: header, _CHECKSUM: _checksum(whole, header)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.atomic_write(path) as stream:
            stream.write(data)
    except OSError as error:
        logger.warning("embeddings are not kept: %s", error)


def make_room(folder: Path, most_bytes: int) -> None:
    """Remove the files of a folder that were not used for longest, until the rest are within a number of bytes.

    Processes may do so side by side: what one has removed is no longer counted by the others.
    """
    files = []
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most_bytes:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def _checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

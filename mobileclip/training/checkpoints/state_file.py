"""A run's state as a file: tensors by name, texts beside them, and a digest of the numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from mobileclip import storage
from mobileclip.tensor_files import CheckpointError, read_tensors
from mobileclip.tensor_files.weights import weights_sha256

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "mobileclip training state 4"
DIGEST = "sha256"

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 24


class DamagedError(ValueError):
    """A file that was a state, or was to become one."""


@attrs.frozen(kw_only=True)
class StateFile:
    """The content of a training checkpoint: tensors by name, and metadata.

    Args:
        tensors: on the CPU, by name.
        metadata: texts by name.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def write(self, path: storage.AnyPath) -> None:
        """Write the file, with the digest of its tensors; it is there whole or not at all.

        Args:
            path: where to, a path or a URL; a local folder is created.

        Raises:
            OSError: if it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            storage.make_directory_of(path)
            with storage.atomic_file(path) as temporary:
                metadata = {**self.metadata, "format": FORMAT, DIGEST: digest(self.tensors)}
                save_file(dict(self.tensors), temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"checkpoint {path} could not be written ({error}); make room and start the run again: it goes on from "
                "the checkpoint before"
            ) from error


def read_state(path: storage.AnyPath) -> StateFile:
    """Return the content of a checkpoint file.

    Raises:
        DamagedError: if the file is damaged, or a number of it is another than was written.
        ValueError: if it cannot be read now.
    """
    try:
        with storage.local_copy(path) as local:
            tensors, metadata = read_tensors(local)
    except CheckpointError as error:
        raise DamagedError(f"{path} is damaged ({error})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); the run goes on from it when it can be") from None
    if DIGEST in metadata and metadata[DIGEST] != digest(tensors):
        raise DamagedError(f"{path} is damaged (its numbers are not those that were written)")
    return StateFile(tensors=tensors, metadata=metadata)


def mark(path: storage.AnyPath) -> str | None:
    """Return a short identifier of a state, from its header; None for another file."""
    with storage.open_read(path) as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if 0 < length <= _MAX_HEADER_BYTES:
            # The header has the digest of all numbers in it.
            return hashlib.sha256(stream.read(length)).hexdigest()[:12]
    return None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: their names, types, shapes and numbers."""
    return weights_sha256(tensors, head="{} {} {}\n")

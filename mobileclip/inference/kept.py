"""Embeddings that are asked for again, kept in memory, and in files that are to the bit what was written."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.machine import raise_machine_fault
from mobileclip.terminal import get_logger

if TYPE_CHECKING:
    from mobileclip.inference.text_towers import TextSide


logger = get_logger(__name__)

SUFFIX = ".safetensors"
_CHECKSUM, _HEADER = "sha256", "header"


def read_kept(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Return the tensors in a file with their header, to the bit as `write_kept` was given them; else None.

    The file is not mapped, which a bad disk would make a crash.
    """
    import safetensors.torch  # slow, and most models keep nothing

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
    import safetensors.torch  # slow, and most models keep nothing

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


MOST_BYTES = 2**28
"""Of what one model keeps in memory: of texts of some words, embeddings of 512 numbers each, about 120,000."""

_SAMPLED = 4


class KeptTexts:
    """Embeddings by text, for any number of threads; the longest unused make room for new ones.

    Two threads that ask for a new text at once may both encode it. What is pickled is empty.

    Args:
        most_bytes: of all embeddings and texts together.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._num_bytes = 0
        self._of: Hashable = None

    def __reduce__(self) -> tuple[type[KeptTexts], tuple[()]]:
        """Return what makes another one, which is empty."""
        return type(self), ()

    def embeddings(self, texts: Sequence[str], encode: Callable[[list[str]], Tensor], *, of: Hashable = None) -> Tensor:
        """Return the embeddings of texts, in order; what is not kept is encoded, each text once.

        Shape:
            result: `(texts, dim)`.

        Args:
            texts: at least one.
            encode: from different texts to `(texts, dim)`, on the CPU.
            of: what embeddings depend on beside their texts; those of anything else are forgotten.
        """
        distinct = list(dict.fromkeys(texts))
        found = self._found(distinct, of)
        new = [text for text in distinct if text not in found]
        if new:
            # Rows of their own: a view of one would keep all the others.
            rows = {text: row.clone() for text, row in zip(new, encode(new), strict=True)}
            self._keep(rows, of)
            found |= rows
        return torch.stack([found[text] for text in texts])

    def _found(self, texts: list[str], of: Hashable) -> dict[str, Tensor]:
        with self._lock:
            if of != self._of:
                self._rows.clear()
                self._num_bytes, self._of = 0, of
            found = {text: row for text in texts if (row := self._rows.get(text)) is not None}
            for text in found:
                self._rows.move_to_end(text)
            return found

    def _keep(self, rows: dict[str, Tensor], of: Hashable) -> None:
        with self._lock:
            if of != self._of:
                return
            for text, row in rows.items():
                if text not in self._rows:
                    self._rows[text] = row
                    self._num_bytes += _size(text, row)
            while self._num_bytes > self._most_bytes:
                self._num_bytes -= _size(*self._rows.popitem(last=False))


def _size(text: str, row: Tensor) -> int:
    return sys.getsizeof(text) + row.nbytes


def state_of(sides: Iterable[TextSide]) -> Hashable:
    """Return what changes when weights of text towers do: their places, how often they were written to, some values.

    A write through `.data` is not counted by PyTorch, and is seen by its values.
    """
    towers = [side.model.text_encoder for side in sides]
    tensors = [tensor for tower in towers for tensor in (*tower.parameters(), *tower.buffers()) if tensor.numel()]
    few = [tensor.detach().flatten()[:: max(1, tensor.numel() // _SAMPLED)].float() for tensor in tensors]
    written = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors)  # noqa: SLF001
    return written, torch.cat(few).cpu().numpy().tobytes() if few else b""

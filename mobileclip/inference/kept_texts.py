"""Embeddings of texts that are asked for again, kept in memory."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mobileclip.inference.text_towers import TextSide

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

"""What a training loop reads from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mobileclip.data.batch import ReinforcedBatch
from mobileclip.data.position import StreamPosition


class BatchSource(Protocol):
    """Batches without end that can be taken up again: `ReinforcedPipeline` and what is built like it."""

    def stream(self, position: StreamPosition) -> Iterator[ReinforcedBatch]:
        """Yield the batches from a position on, the same ones every time."""
        ...

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position behind so many batches of the run."""
        ...

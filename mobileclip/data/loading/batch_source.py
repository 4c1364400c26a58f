"""What a training loop reads from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mobileclip.data.loading.batch import BatchType_co
from mobileclip.data.loading.position import StreamPosition


class BatchSource(Protocol[BatchType_co]):
    """Batches without end that can be taken up again: the pipelines and what is built like them."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType_co]:
        """Yield the batches from a position on, the same ones every time."""
        ...

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position behind so many batches of the run."""
        ...

"""What a training loop reads from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from mobileclip.data.loading.batch import BatchType_co
from mobileclip.data.loading.position import StreamPosition
from mobileclip.data.skips import Skip


class BatchSource(Protocol[BatchType_co]):
    """Batches without end that can be taken up again: the pipelines and what is built like them."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType_co]:
        """Yield the batches from a position on, the same ones every time."""

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position behind so many batches of the run; one more may have been taken, to be copied ahead."""

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return what was left out for the batches up to that number since this was last called, to be told of."""

"""The interface between a data pipeline and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from mobileclip.data.loading.batch import Batch, BatchType_co
from mobileclip.data.loading.order import StreamPosition
from mobileclip.data.skips import Skip

BatchType = TypeVar("BatchType", bound=Batch)


class BatchSource(Protocol[BatchType_co]):
    """Batches without end that can be taken up again: the pipelines and what is built like them."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType_co]:
        """Yield the batches from a position on, the same ones every time."""

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position behind so many batches of the run; one more may have been taken, to be copied ahead."""

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return what was left out for the batches up to that number since this was last called, to be told of."""


class ChangedBatches(ABC, Generic[BatchType]):
    """Batches of another source, each changed on its way: where they are and what they lack is the source's."""

    batches: BatchSource[BatchType]

    @abstractmethod
    def changed(self, batch: BatchType) -> BatchType:
        """Return what becomes of a batch."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType]:
        """Yield the source's batches from a position on, changed."""
        return map(self.changed, self.batches.stream(position))

    def position(self, num_batches: int) -> StreamPosition:
        """Return the source's position behind so many batches."""
        return self.batches.position(num_batches)

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return what the batches left out."""
        return self.batches.take_skips(num_batches)

    @property
    def num_lost(self) -> int:
        """Workers that the source has lost, if it says so."""
        return int(getattr(self.batches, "num_lost", 0))

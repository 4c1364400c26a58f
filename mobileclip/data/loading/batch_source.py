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
    """Interface of an endless, resumable stream of batches."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType_co]:
        """Yield batches from a position on; equal positions give equal batches."""

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position after a number of batches of the run; one more may have been prefetched."""

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return the skips of the batches up to a number, each of them once."""


class ChangedBatches(ABC, Generic[BatchType]):
    """A batch source that changes each batch of another source, and keeps its positions and skips."""

    batches: BatchSource[BatchType]

    @abstractmethod
    def changed(self, batch: BatchType) -> BatchType:
        """Return the changed batch."""

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

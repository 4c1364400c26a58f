"""What a worker does: open its readers, hand over its share of every batch, and note what it is at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, Generic

import attrs
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mobileclip.data.loading.batch import BatchType
from mobileclip.data.loading.keeping import Keep
from mobileclip.data.loading.order import Order, Place, Share
from mobileclip.data.loading.position import StreamPosition
from mobileclip.data.loading.readers import Chunk, Maker, OpenReaders
from mobileclip.data.loading.reading import OrderedSample, SampleReading, ShardReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.storage import use_limits, without_secrets


class ShardDataset(IterableDataset[Chunk[BatchType]], Generic[BatchType]):
    """The chunks that fall to this worker.

    Args:
        spec: the pipeline's choices.
        shards: of the run.
        order: who reads what.
        maker: of batches.
        keep: which samples are used; None for all.
        world: rank and number of processes.
        start: where a stream goes on.
        num_workers: that share the work; 0 for none beside the own process.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        *,
        shards: ShardReader,
        order: Order,
        maker: Maker[Any, Any, BatchType],
        keep: Keep | None,
        world: tuple[int, int],
        start: StreamPosition,
        num_workers: int,
    ) -> None:
        super().__init__()
        # Shared, so that workers that live on see which epoch they are asked for; -1 is the stream without end.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        # Of every worker: its process, how many chunks it has made, the place of its shard, whether it is done.
        self._at = torch.zeros(max(1, num_workers), 4, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._places = {shard: place for place, shard in enumerate(shards.names)}
        self._stores = spec.stores
        self._batch_size = spec.batch_size * world[1]
        self._maker = maker
        self._keep = keep
        self._order = order
        self._reading = SampleReading(
            shards=shards,
            order=order,
            seed=spec.seed,
            shuffle_buffer=spec.shuffle_buffer if spec.shuffle else 0,
            limits=maker.limits,
        )
        self._world = world
        self._start = start

    def __iter__(self) -> Iterator[Chunk[BatchType]]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = Share(rank=self._world[0], world_size=self._world[1], worker=worker, num_workers=num_workers)
        epoch = int(self.epoch)
        return self._noted(worker, self._stream(share) if epoch < 0 else self._epoch(share, epoch))

    def processes(self) -> list[int]:
        """Return the processes of the workers."""
        return [int(process) for process in self._at[:, 0] if process]

    def awaited(self, received: Mapping[int, int]) -> str:
        """Return whose chunks are to come, the one whose turn it is first, with the shards of their last samples.

        Args:
            received: number of chunks that came from each worker.
        """
        rows = [
            (received.get(worker, 0), worker, process, place)
            for worker, (process, made, place, done) in self._rows()
            if not done or received.get(worker, 0) < made
        ]
        if not rows:
            return "a worker that has not begun"
        shards = [without_secrets(shard) for shard in self._places]
        return ", ".join(
            f"worker {worker} (process {process}), last at {shards[place]}"
            for _, worker, process, place in sorted(rows)
        )

    def _rows(self) -> Iterator[tuple[int, list[int]]]:
        return ((worker, row) for worker, row in enumerate(self._at.tolist()) if row[0])

    def _noted(self, worker: int, chunks: Iterator[Chunk[BatchType]]) -> Iterator[Chunk[BatchType]]:
        """Yield the chunks of a worker, and note what it is at."""
        at = self._at[worker]
        at[0], at[1], at[3] = os.getpid(), 0, 0
        while True:
            with use_limits(self._stores):
                chunk = next(chunks, None)
            if chunk is None:
                at[3] = 1
                return
            at[1] += 1
            yield attrs.evolve(chunk, worker=worker)

    def _stream(self, share: Share) -> Iterator[Chunk[BatchType]]:
        """Yield this worker's share of every step of a stream, from its start on."""
        places = {reader: Place(*place) for reader, *place in self._start.places}
        readers: OpenReaders[BatchType] | None = None
        for step in count(self._start.first_batch):
            epoch, numbers = self._order.step(step, self._batch_size)
            if readers is None or readers.epoch != epoch:
                readers = self._opened(share, epoch, places)
                places = {}
            chunk = readers.chunk(numbers)
            yield chunk
            if chunk.gave_up:
                return

    def _epoch(self, share: Share, epoch: int) -> Iterator[Chunk[BatchType]]:
        """Yield this worker's share of every step of an epoch, with fewer samples where its readers have no more."""
        readers = self._opened(share, epoch, {}, is_alone=True)
        return map(readers.chunk, self._order.steps(self._batch_size))

    def _opened(
        self, share: Share, epoch: int, places: Mapping[int, Place], *, is_alone: bool = False
    ) -> OpenReaders[BatchType]:
        return OpenReaders(
            share=share,
            epoch=epoch,
            places=places,
            is_alone=is_alone,
            reading=self._reading,
            maker=self._maker,
            keep=self._keep,
            on_sample=partial(self._note_shard, share.worker),
        )

    def _note_shard(self, worker: int, sample: OrderedSample) -> None:
        self._at[worker, 2] = self._places.get(sample.raw.shard, 0)

"""What a worker does: open its readers, hand over its share of every batch, and note what it is at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import Any, Generic

import attrs
import torch

from mobileclip.data.loading.batch import BatchType
from mobileclip.data.loading.chunks import Chunk, Maker, OpenReaders
from mobileclip.data.loading.crew import Begin
from mobileclip.data.loading.keeping import Keep
from mobileclip.data.loading.order import Cursor, Order, Share
from mobileclip.data.loading.position import StreamPosition
from mobileclip.data.loading.shard_reader import OrderedSample, SampleReading, ShardReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.skips import Skip
from mobileclip.storage import use_limits, without_secrets


class ShardDataset(Generic[BatchType]):
    """The chunks of a process, by worker.

    Args:
        spec: the pipeline's choices.
        shards: of the run.
        order: who reads what.
        maker: of batches.
        keep: which samples are used; None for all.
        world: rank and number of processes.
        left_out: of every epoch that begins, by no reader.
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
        left_out: Sequence[Skip] = (),
    ) -> None:
        # The place of the shard that each worker is at, which the process that started them can see.
        self._at = torch.full((max(1, spec.num_workers),), -1, dtype=torch.int64)
        if spec.num_workers:
            self._at.share_memory_()  # type: ignore[no-untyped-call]
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
        self._left_out = left_out

    def chunks(self, worker: int, num_workers: int, begin: Begin) -> Iterator[Chunk[BatchType]]:
        """Yield the chunks that fall to a worker.

        Args:
            worker: its number.
            num_workers: that share the work.
            begin: of what, and from where on.
        """
        share = Share(rank=self._world[0], world_size=self._world[1], worker=worker, num_workers=num_workers)
        made = self._stream(share, begin.start) if begin.epoch < 0 else self._epoch(share, begin.epoch, begin.start)
        return islice(self._limited(made), begin.num_passed, None)

    def last_shard(self, worker: int) -> str:
        """Return what is known of the shard that a worker's last sample was of."""
        place = int(self._at[worker])
        return f"last at {without_secrets([*self._places][place])}" if place >= 0 else "at its first shard"

    def _limited(self, chunks: Iterator[Chunk[BatchType]]) -> Iterator[Chunk[BatchType]]:
        """Yield chunks, which are made under the limits of stores."""
        while True:
            with use_limits(self._stores):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _stream(self, share: Share, start: StreamPosition) -> Iterator[Chunk[BatchType]]:
        """Yield a worker's share of every step of a stream, from a position on."""
        readers: OpenReaders[BatchType] | None = None
        for step in count(start.first_batch + start.num_passed_over):
            epoch, numbers = self._order.step(step, self._batch_size)
            if readers is None or readers.epoch != epoch:
                here = start if readers is None else StreamPosition(found_dead=start.found_dead)
                readers = self._opened(share, epoch, here)
            chunk = readers.chunk(numbers)
            yield chunk
            if chunk.gave_up:
                return

    def _epoch(self, share: Share, epoch: int, start: StreamPosition) -> Iterator[Chunk[BatchType]]:
        """Yield a worker's share of every step of an epoch, with fewer samples where its readers have no more."""
        readers = self._opened(share, epoch, start, is_alone=True)
        steps = self._order_at(start).steps(self._batch_size)
        return map(readers.chunk, islice(steps, start.first_batch, None))

    def _order_at(self, start: StreamPosition) -> Order:
        """Return the order of the epoch that a position is in, without the shards that were dead when it began."""
        return self._order.without(start.dead if start.places else start.found_dead)

    def _opened(
        self, share: Share, epoch: int, start: StreamPosition, *, is_alone: bool = False
    ) -> OpenReaders[BatchType]:
        is_first = (share.rank, share.worker) == (0, 0)
        return OpenReaders(
            share=share,
            epoch=epoch,
            places={reader: Cursor(*place) for reader, *place in start.places},
            is_alone=is_alone,
            reading=attrs.evolve(self._reading, order=self._order_at(start)),
            maker=self._maker,
            keep=self._keep,
            on_sample=partial(self._note_shard, share.worker),
            left_out=self._left_out if is_first and not start.places else (),
        )

    def _note_shard(self, worker: int, sample: OrderedSample) -> None:
        self._at[worker] = self._places.get(sample.raw.shard, 0)

"""What a worker does: read its shards, make an example of every sample, and hand over batches with what was skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import attrs
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mobileclip.data.loading.batch import BatchType, BatchType_co
from mobileclip.data.loading.order import OrderedSample, Reader, SampleOrder, ShardReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.shards.files import parse
from mobileclip.data.skips import Skip, attempt
from mobileclip.storage import use_limits, without_secrets

T = TypeVar("T")
SampleType = TypeVar("SampleType")
ExampleType = TypeVar("ExampleType")

# Bad samples in a row, more than a shard holds, after which a worker that draws shards without end gives up.
MAX_VAIN = 100_000


class Maker(Protocol[SampleType, ExampleType, BatchType_co]):
    """Makes examples and batches of them; what it chooses depends on the seed, the epoch and the key alone."""

    @property
    def limits(self) -> SampleLimits:
        """What may be read of a sample."""
        ...

    def parse(self, key: str, members: Mapping[str, bytes]) -> SampleType:
        """Return the sample that members of a shard make.

        Raises:
            BadSampleError: if they make none.
        """
        ...

    def example(self, sample: SampleType, epoch: int, draw: str = "") -> ExampleType:
        """Return what an epoch takes of a sample.

        Raises:
            BadSampleError: if the sample cannot be used.
        """
        ...

    def collate(self, examples: Sequence[ExampleType]) -> BatchType_co:
        """Return the batch of several examples."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class Chunk(Generic[BatchType]):
    """What a worker hands over: at most a batch of samples, and what it skipped since the last.

    Args:
        batch: None where there were only skips, or the batch was passed over.
        num_passed: number of samples that were passed over in place of a batch.
        skips: to be counted by the process that trains.
        places: of the samples that were skipped, for `StreamPosition`.
        worker: who made it.
    """

    batch: BatchType | None = None
    num_passed: int = 0
    skips: tuple[Skip, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    worker: int = 0


class ShardDataset(IterableDataset[Chunk[BatchType]], Generic[BatchType]):
    """The chunks of the shards that fall to this worker.

    Args:
        spec: the pipeline's choices.
        reader: of all shards of the run.
        maker: of batches.
        world: rank and number of processes.
        known: places of samples that a run skipped before it was resumed, and the epoch that it skipped them in.
        num_workers: that share the chunks; 0 for none beside the own process.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        *,
        reader: ShardReader,
        maker: Maker[Any, Any, BatchType],
        world: tuple[int, int],
        known: tuple[int, frozenset[tuple[str, str]]],
        num_workers: int,
    ) -> None:
        super().__init__()
        # Shared, so that workers that live on see which epoch they are asked for, and from which batch on.
        self.request = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        # Of every worker: its process, how many chunks it has made, the place of its shard, whether it is done.
        self._at = torch.zeros(max(1, num_workers), 4, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._places = {shard: place for place, shard in enumerate(reader.names)}
        self._stores = spec.stores
        self._batch_size = spec.batch_size
        self._maker = maker
        self._order = SampleOrder(
            reader=reader,
            sampling=spec.sampling,
            seed=spec.seed,
            shuffle=spec.shuffle,
            shuffle_buffer=spec.shuffle_buffer,
            limits=maker.limits,
        )
        self._world = world
        self._known = known

    def __iter__(self) -> Iterator[Chunk[BatchType]]:
        epoch, first_batch = self.request.tolist()
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        reader = Reader(rank=self._world[0], world_size=self._world[1], worker=worker, num_workers=num_workers)
        # Workers take turns, so batch number n is worker n % num_workers's unless others have run out, and then it
        # comes earlier: what is passed over here was consumed for certain.
        num_passed = max(0, -((worker - first_batch) // num_workers))
        return self._noted(worker, self._chunks(epoch, reader, num_passed))

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

    def _chunks(self, epoch: int, reader: Reader, num_passed: int) -> Iterator[Chunk[BatchType]]:
        skips: list[Skip] = []
        places: list[tuple[str, str]] = []
        examples: list[tuple[OrderedSample, Any]] = []
        samples = self._watched(self._order.samples(epoch, reader, skips.append), reader.worker)
        for _ in range(num_passed):
            consumed = self._pass_over(samples, epoch)
            if len(consumed) < self._batch_size:
                # The last samples of an epoch may belong to a batch that is yet to come.
                samples = iter(consumed)
                break
            yield Chunk(num_passed=len(consumed), skips=_taken(skips))
        num_vain = 0
        for sample in samples:
            example = self._example(sample, epoch, skips.append)
            if example is None:
                places.append(sample.place)
                num_vain += 1
                if num_vain == MAX_VAIN and self._order.sampling == "resampled":
                    last = skips[-1]
                    name = f"{last.key} of {last.shard}"
                    raise ValueError(f"{MAX_VAIN} samples in a row cannot be used, the last ({name}): {last.reason}")
                continue
            num_vain = 0
            examples.append((sample, example))
            if len(examples) == self._batch_size:
                batch = self._collated(examples, skips.append, places.append)
                if batch is not None:
                    examples.clear()
                    yield Chunk(batch=batch, skips=_taken(skips), places=_taken(places))
        rest = None
        while examples and rest is None:
            rest = self._collated(examples, skips.append, places.append)
        if rest is not None or skips:
            yield Chunk(batch=rest, skips=tuple(skips), places=tuple(places))

    def _collated(
        self,
        examples: list[tuple[OrderedSample, Any]],
        on_skip: Callable[[Skip], None],
        on_place: Callable[[tuple[str, str]], None],
    ) -> BatchType | None:
        """Return the batch of the examples, or None after taking those away that stand in its way."""
        try:
            return self._maker.collate([example for _, example in examples])
        except Exception:
            usable = [pair for pair in examples if self._alone(*pair, on_skip) is not None]
            if len(usable) == len(examples):
                raise
            for pair in examples:
                if not any(pair is one for one in usable):
                    on_place(pair[0].place)
            examples[:] = usable
            return None

    def _alone(self, sample: OrderedSample, example: Any, on_skip: Callable[[Skip], None]) -> BatchType | None:
        return attempt(
            partial(self._maker.collate, [example]), key=sample.raw.key, shard=sample.raw.shard, on_skip=on_skip
        )

    def _watched(self, samples: Iterator[OrderedSample], worker: int) -> Iterator[OrderedSample]:
        last = ""
        for sample in samples:
            if sample.raw.shard != last:
                last = sample.raw.shard
                self._at[worker, 2] = self._places.get(last, 0)
            yield sample

    def _pass_over(self, samples: Iterator[OrderedSample], epoch: int) -> list[OrderedSample]:
        """Return the samples that made the next batch, as many as there are, without looking into them."""
        known = self._known[1] if self._known[0] == epoch else frozenset()
        return list(islice((sample for sample in samples if sample.place not in known), self._batch_size))

    def _example(self, sample: OrderedSample, epoch: int, on_skip: Callable[[Skip], None]) -> Any:
        raw = sample.raw

        def example(key: str, members: Mapping[str, bytes]) -> Any:
            return self._maker.example(self._maker.parse(key, members), epoch, sample.draw)

        return parse(raw, example, on_skip)


def _taken(items: list[T]) -> tuple[T, ...]:
    """Return the items and leave the list empty."""
    taken = tuple(items)
    items.clear()
    return taken

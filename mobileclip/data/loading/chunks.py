"""A loader worker's share of every batch: samples of its readers, with replacements for bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from typing import Any, Generic, Protocol, TypeVar

import attrs
import torch

from mobileclip.data.loading.batch import BatchType, BatchType_co
from mobileclip.data.loading.crew import Begin
from mobileclip.data.loading.epoch_order import EpochOrder
from mobileclip.data.loading.order import Cursor, CursorRow, Order, Share, StreamPosition, rows
from mobileclip.data.loading.shard_reader import OrderedSample, SampleReading, ShardReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.loading.uid_list import Keep
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.shards.files import parse
from mobileclip.data.skips import Skip, attempt
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable, use_limits, without_secrets

SampleType = TypeVar("SampleType")
ExampleType = TypeVar("ExampleType")

# Bad samples in a row, more than a shard holds, after which a reader of a stream gives up.
MAX_VAIN = 100_000
# And so many that are none of those to be used.
MAX_UNWANTED = 10_000_000


class Maker(Protocol[SampleType, ExampleType, BatchType_co]):
    """Makes examples and batches of them; what it chooses depends on the seed, the epoch and the key alone."""

    @property
    def limits(self) -> SampleLimits:
        """What may be read of a sample."""

    def parse(self, key: str, members: Mapping[str, bytes]) -> SampleType:
        """Return the sample that members of a shard make.

        Raises:
            BadSampleError: if they make none.
        """

    def example(self, sample: SampleType, epoch: int) -> ExampleType:
        """Return the example that an epoch makes of a sample.

        Raises:
            BadSampleError: if the sample cannot be used.
        """

    def collate(self, examples: Sequence[ExampleType]) -> BatchType_co:
        """Return the batch of several examples."""


@attrs.frozen(kw_only=True, eq=False)
class Chunk(Generic[BatchType]):
    """A loader worker's share of a step's batch.

    Args:
        batch: None where it has no sample of the step.
        numbers: of its samples in the epoch, which they are ordered by.
        skips: what was left out for it.
        num_unwanted: number of samples that are not among those to be used.
        places: where the readers that it took samples from stand now, as a `StreamPosition` has them.
        dead: numbers of shards that turned out to have no sample.
        gave_up: whether a reader has nothing more, and so no next step is to be expected.
    """

    batch: BatchType | None = None
    numbers: tuple[int, ...] = ()
    skips: tuple[Skip, ...] = ()
    num_unwanted: int = 0
    places: tuple[CursorRow, ...] = ()
    dead: tuple[int, ...] = ()
    gave_up: bool = False


class ShardDataset(Generic[BatchType]):
    """What the loader workers of a process read: the chunks of each, from shards.

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
        self._world = world
        self._order = order
        self._reading = SampleReading(
            shards=shards,
            order=order,
            seed=spec.seed,
            shuffle_buffer=spec.shuffle_buffer if spec.shuffle else 0,
            limits=maker.limits,
        )
        self.maker, self.keep, self.left_out = maker, keep, left_out

    def chunks(self, worker: int, num_workers: int, begin: Begin) -> Iterator[Chunk[BatchType]]:
        """Yield a worker's chunks.

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

    def note_shard(self, worker: int, shard: str) -> None:
        """Note the shard of a worker's sample before anything is made of it."""
        self._at[worker] = self._places.get(shard, 0)

    def reading_at(self, start: StreamPosition) -> SampleReading:
        """Return how readers read the epoch that a position is in, without the shards that were dead when it began."""
        return attrs.evolve(self._reading, order=self._order.without(start.dead if start.places else start.found_dead))

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
        for step in count(start.first_batch):
            epoch, numbers = self._order.step(step, self._batch_size)
            if readers is None or readers.epoch != epoch:
                here = start if readers is None else StreamPosition(found_dead=start.found_dead)
                readers = OpenReaders(self, share, epoch, here)
            chunk = readers.chunk(numbers)
            yield chunk
            if chunk.gave_up:
                return

    def _epoch(self, share: Share, epoch: int, start: StreamPosition) -> Iterator[Chunk[BatchType]]:
        """Yield a worker's share of every step of an epoch, with fewer samples where its readers have no more."""
        readers = OpenReaders(self, share, epoch, start, is_alone=True)
        assert isinstance(readers.order, EpochOrder), "others are streams"
        return map(readers.chunk, islice(readers.order.steps(self._batch_size), start.first_batch, None))


class OpenReaders(Generic[BatchType]):
    """The readers of a worker in one epoch, or in a stream without end.

    Args:
        dataset: what they read.
        share: which readers these are.
        epoch: its number.
        start: where they stand.
        is_alone: whether each reads its own part of the epoch alone, and ends with it.
    """

    def __init__(
        self,
        dataset: ShardDataset[BatchType],
        share: Share,
        epoch: int,
        start: StreamPosition,
        *,
        is_alone: bool = False,
    ) -> None:
        reading = dataset.reading_at(start)
        self.epoch, self.order = epoch, reading.order
        self._maker, self._keep, self._is_alone = dataset.maker, dataset.keep, is_alone
        self._note_shard = partial(dataset.note_shard, share.worker)
        self._num_readers = reading.order.num_readers
        is_first = (share.rank, share.worker) == (0, 0)
        self._skips = [*dataset.left_out] if is_first and not start.places else []
        self._num_unwanted = 0
        self._dead: list[int] = []
        self._moved: dict[int, Cursor] = {}
        places, told = start.cursors, (self._skips.append, self._dead.append)
        self._samples = {
            reader: reading.samples(reader, epoch, places.get(reader, Cursor()), *told, is_alone=is_alone)
            for reader in share.readers(self._num_readers)
        }

    def chunk(self, numbers: range) -> Chunk[BatchType]:
        """Return this worker's share of a step.

        Args:
            numbers: of the step's samples in the epoch, those of all processes.
        """
        own = sorted(
            number
            for reader in self._samples
            for number in numbers[(reader - numbers.start) % self._num_readers :: self._num_readers]
        )
        batch, made = None, self._made(own)
        while made and batch is None:
            batch = self._collated(made)
        chunk = Chunk(
            batch=batch,
            numbers=tuple(sample.number for sample in made),
            skips=tuple(self._skips),
            num_unwanted=self._num_unwanted,
            places=rows(self._moved),
            dead=tuple(self._dead),
            gave_up=len(made) < len(own) and not self._is_alone,
        )
        self._num_unwanted = 0
        for told in (self._skips, self._moved, self._dead):
            told.clear()
        return chunk

    def _made(self, numbers: Sequence[int]) -> list[OrderedSample]:
        """Return samples with their examples, as many as there are."""
        return [made for number in numbers if (made := self._next(number)) is not None]

    def _next(self, number: int) -> OrderedSample | None:
        """Return the next sample of a reader that can be used, with its example."""
        reader = number % self._num_readers
        num_vain = num_unwanted = 0
        for sample in self._samples[reader]:
            self._note_shard(sample.raw.shard)
            self._moved[reader] = sample.place
            if self._keep is not None and not self._keep(sample.raw.key, sample.raw.members):
                num_unwanted += 1
                self._num_unwanted += 1
                if num_unwanted == MAX_UNWANTED:
                    key = printable(sample.raw.key)
                    raise ValueError(f"{MAX_UNWANTED:,} samples in a row, to {key}, are none of those to be used")
                continue
            skips: list[Skip] = []
            sample.number = number
            sample.example = parse(sample.raw, partial(self._example, sample.epoch), skips.append)
            if sample.example is not None:
                return sample
            if not self.order.is_repeat(sample.place.turn):  # or it was told of
                self._skips.extend(skips)
            num_vain += 1
            if num_vain == MAX_VAIN:
                (last,) = skips
                raise ValueError(
                    f"{MAX_VAIN} samples in a row cannot be used, the last ({last.key} of {last.shard}): "
                    f"{last.reason}: {last.detail}"
                )
        return None

    def _example(self, epoch: int, key: str, members: Mapping[str, bytes]) -> Any:
        return self._maker.example(self._maker.parse(key, members), epoch)

    def _collated(self, made: list[OrderedSample]) -> BatchType | None:
        """Return the batch of the examples, or None after putting others in the place of bad ones."""
        try:
            return self._maker.collate([sample.example for sample in made])
        except Exception as error:
            raise_machine_fault(error)
            usable = [sample for sample in made if self._is_usable(sample)]
            if len(usable) == len(made):
                raise
            kept = {sample.number for sample in usable}
            others = self._made([sample.number for sample in made if sample.number not in kept])
            made[:] = sorted((*usable, *others), key=lambda sample: sample.number)
            return None

    def _is_usable(self, sample: OrderedSample) -> bool:
        collate = partial(self._maker.collate, [sample.example])
        return attempt(collate, key=sample.raw.key, shard=sample.raw.shard, on_skip=self._skips.append) is not None

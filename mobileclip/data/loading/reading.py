"""A worker's share of each step: ordered samples of its readers, with replacements for bad samples.

`read_shard` in `mobileclip.data.shards.files` reports a damaged shard and continues with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import attrs
import torch

from mobileclip import storage
from mobileclip.data.loading.batch import BatchType, BatchType_co
from mobileclip.data.loading.order import Cursor, CursorRow, Order, Segment, StreamPosition
from mobileclip.data.loading.uids import Keep
from mobileclip.data.randomness import seeded_rng, shuffled_at_once
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import RawSample, Shards, expand_shards, is_local, parse, read_shard
from mobileclip.data.shards.sidecars import shard_sizes
from mobileclip.data.skips import Skip, attempt
from mobileclip.machine import raise_machine_fault

SampleType = TypeVar("SampleType")
ExampleType = TypeVar("ExampleType")

# Number of successive shards without a sample, or of passes without a sample, after which a reader gives up.
MAX_EMPTY_SHARDS, MAX_EMPTY_ROUNDS = 100, 10
# Number of successive bad samples, more than a shard holds, after which a stream ends with an error.
MAX_VAIN = 100_000
# The same limit for samples that `uids` or `keep` rejects.
MAX_UNWANTED = 10_000_000


class ShardReader(Protocol):
    """Interface for reading samples shard by shard."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the shards."""

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """Names of the shards, by source."""

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the samples of one shard, in order, and report unreadable parts."""

    def sizes(self, limits: SampleLimits) -> tuple[int, ...]:
        """Return the number of samples of every shard.

        Raises:
            ValueError: if shards of unknown size are remote, or too many for counting their samples.
        """


@attrs.frozen(slots=False)
class TarReader:
    """Reader of tar shards.

    Args:
        sources: paths of the shards, one tuple per pattern.
        cache: folder for copies of remote shards; None for no copies.
    """

    sources: tuple[tuple[str, ...], ...]
    cache: storage.FileCache | None = None

    @classmethod
    def of(cls, shards: Shards, cache: storage.FileCache | None = None) -> TarReader:
        """Return a reader for the shards that match patterns.

        Raises:
            ValueError: if the patterns match no shard, or none of the matching shards exists.
        """
        patterns = (shards,) if not isinstance(shards, (list, tuple)) else tuple(shards)
        names = expand_shards(shards)
        if not any(not is_local(name) or storage.local_path(name).exists() for name in names):
            raise ValueError(f"none of the {len(names)} shards exists; the first is {names[0]}")
        return cls(tuple(expand_shards(pattern) for pattern in patterns), cache)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Paths of all shards."""
        return tuple(name for source in self.sources for name in source)

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the samples of one shard; see `read_shard`."""
        return read_shard(name, on_skip, limits, cache=self.cache)

    def sizes(self, limits: SampleLimits) -> tuple[int, ...]:
        """Return the number of samples of every shard; see `shard_sizes`."""
        return shard_sizes(self.names, limits)


class Maker(Protocol[SampleType, ExampleType, BatchType_co]):
    """Interface for making examples and batches; random choices depend only on seed, epoch and key."""

    @property
    def limits(self) -> SampleLimits:
        """Limits on the size of a sample."""

    def parse(self, key: str, members: Mapping[str, bytes]) -> SampleType:
        """Parse a sample from its shard members.

        Raises:
            BadSampleError: if the members do not form a valid sample.
        """

    def example(self, sample: SampleType, epoch: int) -> ExampleType:
        """Return the example of a sample in an epoch.

        Raises:
            BadSampleError: if a required part of the sample is missing or damaged.
        """

    def collate(self, examples: Sequence[ExampleType]) -> BatchType_co:
        """Collate examples into a batch."""


@attrs.define
class OrderedSample:
    """A sample with its position in the order, before batching.

    Args:
        raw: unparsed sample from the shard.
        epoch: number of earlier passes over the sample's shard; determines augmentation and captions.
        place: the reader's position after the sample.
        is_repeat: whether a reader has already returned the sample in this epoch.
        number: number of the sample within the epoch, which determines the position in a batch; -1 until known.
        example: example made from the sample; None before the maker has made the example.
    """

    raw: RawSample
    epoch: int
    place: Cursor
    is_repeat: bool = False
    number: int = -1
    example: Any = None


@attrs.frozen(kw_only=True)
class SampleReading:
    """Settings for reading samples in order.

    Args:
        shards: shards of the run.
        order: order in which the readers read the samples.
        seed: seed of the order of samples.
        shuffle_buffer: number of encoded samples in every reader's shuffle buffer; 0 keeps the order.
        limits: limits on the size of a sample.
    """

    shards: ShardReader
    order: Order
    seed: int
    shuffle_buffer: int
    limits: SampleLimits = SAMPLE_LIMITS

    def samples(
        self, reader: int, epoch: int, place: Cursor, on_skip: Callable[[Skip], None], *, is_alone: bool = False
    ) -> Iterator[OrderedSample]:
        """Yield the samples of a reader from a position.

        The iterator ends after the reader's last turn, after a hundred consecutive shards without samples, or after ten
        passes without samples.

        Args:
            reader: number of the reader.
            epoch: number of the epoch; 0 in an endless stream.
            place: position of the reader.
            on_skip: function that receives each skip after the position.
            is_alone: whether the reader stops after its first turn.
        """
        num_empty, most = 0, min(MAX_EMPTY_SHARDS, MAX_EMPTY_ROUNDS * len(self.shards.names))
        for turn in islice(self.order.turns(epoch, place.turn), 1 if is_alone else None):
            for number, segment in enumerate(self.order.segments(reader, turn)):
                if Cursor(turn, number) < Cursor(place.turn, place.segment):
                    continue
                num_passed = place.sample if (turn, number) == (place.turn, place.segment) else 0
                num_empty += 1
                for sample, raw in enumerate(self._segment(segment, num_passed, on_skip), start=num_passed + 1):
                    num_empty = 0
                    yield OrderedSample(raw, segment.epoch, Cursor(turn, number, sample), segment.is_repeat)
                if num_empty >= most:
                    return

    def _segment(self, segment: Segment, num_passed: int, on_skip: Callable[[Skip], None]) -> Iterator[RawSample]:
        """Yield the samples of a segment after the first `num_passed` samples, without repeating reports of skips."""
        is_told = num_passed > 0 or segment.is_repeat

        def report(skip: Skip) -> None:
            # Only the first reader of a shard reports that the shard cannot be opened.
            if not is_told and (skip.reason != "unreadable_shard" or segment.start == 0):
                on_skip(skip)

        read = self.shards.read(segment.shard, report, self.limits)
        # Samples outside the segment belong to other readers.
        raws: Iterator[RawSample] = islice(read, segment.start, segment.stop, segment.stride)
        if self.shuffle_buffer:
            rng = seeded_rng(self.seed, "samples", segment.epoch, segment.number, segment.start)
            raws = shuffled_at_once(raws, self.shuffle_buffer, rng)
        for _ in islice(raws, num_passed):
            pass
        is_told = segment.is_repeat
        yield from raws


@attrs.frozen(kw_only=True, eq=False)
class Chunk(Generic[BatchType]):
    """A worker's share of a step's batch.

    Args:
        batch: the worker's samples of the step, or None if the worker has no samples.
        numbers: numbers of the worker's samples within the epoch, for sorting.
        skips: skipped samples and shards.
        num_unwanted: number of samples that `keep` rejected.
        places: positions of the readers after the step, as in `StreamPosition`.
        gave_up: whether a reader has no more samples, so that no step follows.
    """

    batch: BatchType | None = None
    numbers: tuple[int, ...] = ()
    skips: tuple[Skip, ...] = ()
    num_unwanted: int = 0
    places: tuple[CursorRow, ...] = ()
    gave_up: bool = False


@attrs.frozen(kw_only=True, eq=False)
class Chunks(Generic[BatchType]):
    """The `ChunkSource` of one process: each worker's share of the batches, from a position in the stream.

    Args:
        reading: settings of the readers.
        maker: maker of examples and batches.
        keep: function that selects the samples to use; None uses all samples.
        batch_size: number of samples per batch over all processes.
        world: rank of this process, and number of processes.
        start: position of the stream at the start.
        epoch: number of the epoch, in which each reader reads only its own part; None for an endless stream.
        stores: timeouts and other limits for remote stores.
        current_shards: index of every worker's current shard, -1 before the first; shared with the parent process.
    """

    reading: SampleReading
    maker: Maker[Any, Any, BatchType]
    keep: Keep | None
    batch_size: int
    world: tuple[int, int]
    start: StreamPosition
    epoch: int | None
    stores: storage.StoreLimits
    current_shards: torch.Tensor

    def chunks(self, worker: int, num_workers: int) -> Iterator[Chunk[BatchType]]:
        """Yield the chunks of a worker.

        Args:
            worker: index of the worker.
            num_workers: number of workers that share the work.
        """
        made = _Readers(self, worker, num_workers).chunks()
        while True:
            with storage.use_limits(self.stores):
                chunk = next(made, None)
            if chunk is None:
                return
            yield chunk

    def last_shard(self, worker: int) -> str:
        """Return a description of the shard of a worker's last sample."""
        place = int(self.current_shards[worker])
        if place < 0:
            return "at its first shard"
        return f"last at {storage.without_secrets(self.reading.shards.names[place])}"


class _Readers(Generic[BatchType]):
    """The readers of a worker.

    Args:
        chunks: settings of the chunks, with the start position.
        worker: index of the worker.
        num_workers: number of workers that share the work.
    """

    def __init__(self, chunks: Chunks[BatchType], worker: int, num_workers: int) -> None:
        self._chunks, self._worker, self._num_readers = chunks, worker, chunks.reading.order.num_readers
        rank, world_size = chunks.world
        self._own = range(self._num_readers)[rank::world_size][worker::num_workers]
        self._number = {shard: number for number, shard in enumerate(chunks.reading.shards.names)}
        self._samples: dict[int, Iterator[OrderedSample]] = {}
        self._skips: list[Skip] = []
        self._num_unwanted = 0
        self._moved: dict[int, Cursor] = {}

    def chunks(self) -> Iterator[Chunk[BatchType]]:
        """Yield this worker's shares of the steps."""
        chunks, now = self._chunks, None
        cursors, is_alone = chunks.start.cursors, chunks.epoch is not None
        for epoch, numbers in chunks.reading.order.steps(
            chunks.start.first_batch, chunks.batch_size, epoch=chunks.epoch
        ):
            if epoch != now:
                now = epoch
                self._samples = {
                    reader: chunks.reading.samples(
                        reader, epoch, cursors.get(reader, Cursor()), self._skips.append, is_alone=is_alone
                    )
                    for reader in self._own
                }
            chunk = self._chunk(numbers)
            yield chunk
            if chunk.gave_up:
                return

    def _chunk(self, numbers: range) -> Chunk[BatchType]:
        """Return this worker's share of the step with the sample numbers `numbers`."""
        own = sorted(
            number
            for reader in self._own
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
            places=tuple((reader, *place) for reader, place in self._moved.items()),
            gave_up=len(made) < len(own) and self._chunks.epoch is None,
        )
        self._num_unwanted = 0
        self._skips.clear()
        self._moved.clear()
        return chunk

    def _made(self, numbers: Sequence[int]) -> list[OrderedSample]:
        """Return the next usable sample for each number, with its example."""
        return [made for number in numbers if (made := self._next(number)) is not None]

    def _next(self, number: int) -> OrderedSample | None:
        """Return the next usable sample of a reader, with its example."""
        reader, keep = number % self._num_readers, self._chunks.keep
        num_vain = num_unwanted = 0
        for sample in self._samples[reader]:
            raw, skips = sample.raw, list[Skip]()
            self._chunks.current_shards[self._worker] = self._number.get(raw.shard, 0)
            self._moved[reader] = sample.place
            if keep is not None and not keep(raw.key, raw.members):
                num_unwanted += 1
                self._num_unwanted += 1
                if num_unwanted == MAX_UNWANTED:
                    key = storage.printable(raw.key)
                    raise ValueError(
                        f"uids or keep rejected {MAX_UNWANTED:,} samples in a row, the last of them {key}; check that "
                        "uids or keep match the shards"
                    )
                continue
            sample.number = number
            sample.example = parse(raw, partial(self._example, sample.epoch), skips.append)
            if sample.example is not None:
                return sample
            if not sample.is_repeat:  # skips of a repeated sample were already reported
                self._skips.extend(skips)
            num_vain += 1
            if num_vain == MAX_VAIN:
                (last,) = skips
                raise ValueError(
                    f"{MAX_VAIN} samples in a row cannot be used; the last is {last.key} of {last.shard}, "
                    f"{last.reason}: {last.detail}"
                )
        return None

    def _example(self, epoch: int, key: str, members: Mapping[str, bytes]) -> Any:
        return self._chunks.maker.example(self._chunks.maker.parse(key, members), epoch)

    def _collated(self, made: list[OrderedSample]) -> BatchType | None:
        """Collate the examples; if examples are bad, replace the bad examples in `made` and return None."""
        try:
            return self._chunks.maker.collate([sample.example for sample in made])
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
        collate = partial(self._chunks.maker.collate, [sample.example])
        return attempt(collate, key=sample.raw.key, shard=sample.raw.shard, on_skip=self._skips.append) is not None

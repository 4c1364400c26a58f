"""Reads a reader's samples in order through a shuffle buffer, from any position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, islice
from typing import Any, Protocol

import attrs

from mobileclip import storage
from mobileclip.data.loading.order import Cursor, Order, Segment
from mobileclip.data.randomness import seeded_rng, shuffled_at_once
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.counts import shard_sizes
from mobileclip.data.shards.files import RawSample, Shards, expand_shards, is_here, read_shard
from mobileclip.data.skips import CONNECTION_FAILED, Skip

# Shards in a row without a sample, or times that it saw all of them, after which a reader gives up: there is nothing,
# or the store is away.
MAX_EMPTY_SHARDS = 100
MAX_EMPTY_ROUNDS = 10
_NUM_TRIED_AT_ONCE = 16


class ShardReader(Protocol):
    """Interface of a reader of samples, shard by shard."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the shards."""

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """Names of the shards, by source."""

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the samples of one part, in order; what cannot be read is reported."""

    def sizes(self, limits: SampleLimits) -> tuple[int, ...]:
        """Return the number of samples of every part.

        Raises:
            ValueError: if nothing says them and they are too many to be counted now.
        """


@attrs.frozen
class TarReader:
    """Reads tar shards.

    Args:
        sources: their paths, by the pattern that named them.
        cache: where copies of remote ones are kept; none keeps none.
    """

    sources: tuple[tuple[str, ...], ...]
    cache: storage.FileCache | None = None

    @classmethod
    def of(cls, shards: Shards, cache: storage.FileCache | None = None) -> TarReader:
        """Return a reader of the shards that patterns name.

        Raises:
            ValueError: if they name no shard, or none of the local ones exists.
        """
        patterns = (shards,) if not isinstance(shards, (list, tuple)) else tuple(shards)
        names = expand_shards(shards)
        if not any(not is_here(name) or storage.local_path(name).exists() for name in names):
            raise ValueError(f"none of the {len(names)} shards exists, the first is {names[0]}")
        return cls(tuple(expand_shards(pattern) for pattern in patterns), cache)

    @property
    def names(self) -> tuple[str, ...]:
        """All paths."""
        return tuple(name for source in self.sources for name in source)

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the samples of one shard; see `read_shard`."""
        return read_shard(name, on_skip, limits, cache=self.cache)

    def sizes(self, limits: SampleLimits) -> tuple[int, ...]:
        """Return the number of samples of every shard; see `shard_sizes`."""
        return shard_sizes(self.names, limits)


@attrs.define
class OrderedSample:
    """A sample with its place in the order, before it is put into a batch.

    Args:
        raw: what the shard holds.
        epoch: how often its shard was read through before; decides augmentation and captions.
        place: where the reader stands behind it.
        number: in the epoch, of the place in a batch that it takes.
        example: what the epoch takes of it, once that is made.
    """

    raw: RawSample
    epoch: int
    place: Cursor
    number: int = -1
    example: Any = None


@attrs.frozen(kw_only=True)
class SampleReading:
    """Settings of reading samples in order.

    Args:
        shards: of the run.
        order: who reads what.
        seed: of the order of samples.
        shuffle_buffer: number of samples, encoded, of every reader's buffer; 0 leaves them as they come.
        limits: of what is read of a sample.
    """

    shards: ShardReader
    order: Order
    seed: int
    shuffle_buffer: int
    limits: SampleLimits = SAMPLE_LIMITS

    def samples(
        self,
        reader: int,
        epoch: int,
        place: Cursor,
        on_skip: Callable[[Skip], None],
        on_dead: Callable[[int], None],
        *,
        is_alone: bool = False,
    ) -> Iterator[OrderedSample]:
        """Yield the samples of a reader from a place on.

        It ends where the order does, or where a hundred shards in a row had none, or all there are ten times.

        Args:
            reader: its number.
            epoch: its number; 0 in a stream without end.
            place: where it stands.
            on_skip: called with what had to be left out, behind that place.
            on_dead: called with the number of a shard that has no sample.
            is_alone: whether it keeps to its first turn.
        """
        num_empty = 0
        for turn in count(place.turn) if not is_alone else (place.turn,):
            segments = self.order.segments(epoch, reader, turn)
            if segments is None:
                return
            report = (lambda _: None) if self.order.is_repeat(turn) else on_skip
            for number, segment in enumerate(segments):
                if Cursor(turn, number) < Cursor(place.turn, place.segment):
                    continue
                num_passed = place.sample if (turn, number) == (place.turn, place.segment) else 0
                num_empty += 1
                for sample, raw in enumerate(self._segment(segment, num_passed, report, on_dead), start=num_passed + 1):
                    num_empty = 0
                    yield OrderedSample(raw, segment.epoch, Cursor(turn, number, sample))
                if num_empty >= min(MAX_EMPTY_SHARDS, MAX_EMPTY_ROUNDS * len(self.shards.names)):
                    return

    def _segment(
        self, segment: Segment, num_passed: int, on_skip: Callable[[Skip], None], on_dead: Callable[[int], None]
    ) -> Iterator[RawSample]:
        """Yield the samples of a segment but for the first ones, of which nothing is reported again."""
        is_passing, is_away = num_passed > 0, False

        def report(skip: Skip) -> None:
            nonlocal is_away
            is_away = is_away or skip.reason == CONNECTION_FAILED
            if not is_passing:
                on_skip(skip)

        read = self.shards.read(segment.shard, report, self.limits)
        first = next(read, None)
        if first is None:
            if not is_away:
                on_dead(segment.number)
            return
        # What stands in front of the segment is another reader's.
        raw_samples: Iterator[RawSample] = islice(chain((first,), read), segment.start, segment.stop, segment.stride)
        if self.shuffle_buffer:
            rng = seeded_rng(self.seed, "samples", segment.epoch, segment.number, segment.start)
            raw_samples = shuffled_at_once(raw_samples, self.shuffle_buffer, rng)
        for _ in islice(raw_samples, num_passed):
            pass
        is_passing = False
        yield from raw_samples


def find_dead(reader: ShardReader, limits: SampleLimits, numbers: Sequence[int]) -> dict[int, tuple[Skip, ...]]:
    """Return the shards without samples among those of some numbers, with the skips of each.

    One whose store or disk failed may have some another time.
    """
    names = reader.names

    def tried(number: int) -> tuple[Skip, ...] | None:
        skips: list[Skip] = []
        is_alive = next(reader.read(names[number], skips.append, limits), None) is not None
        return None if is_alive or any(skip.reason == CONNECTION_FAILED for skip in skips) else tuple(skips)

    with ThreadPoolExecutor(_NUM_TRIED_AT_ONCE) as pool:
        found = list(pool.map(tried, numbers))
    return {number: skips for number, skips in zip(numbers, found, strict=True) if skips is not None}

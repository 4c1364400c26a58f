"""What one reader reads: the samples of its segments in their order, shuffled in a buffer, from any place on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Protocol

import attrs

from mobileclip.data.loading.order import Cursor, Order, Segment
from mobileclip.data.randomness import seeded_rng, shuffled_at_once
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.counts import MOST_COUNTED, shard_sizes
from mobileclip.data.shards.files import RawSample, Shards, expand_shards, read_shard
from mobileclip.data.skips import CONNECTION_FAILED, Skip
from mobileclip.storage import FileCache

# Shards in a row without a sample, or times that it saw all of them, after which a reader gives up: there is nothing,
# or the store is away.
MAX_EMPTY_SHARDS = 100
MAX_EMPTY_ROUNDS = 10
_NUM_TRIED_AT_ONCE = 16


class ShardReader(Protocol):
    """Samples in parts that can be read one by one."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called, the shards."""

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """The same names by where they come from."""

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
    cache: FileCache | None = None

    @classmethod
    def of(cls, shards: Shards, cache: FileCache | None = None) -> TarReader:
        """Return the reader of what patterns name.

        Raises:
            ValueError: if they name no shard, or none of the local ones exists.
        """
        patterns = (shards,) if not isinstance(shards, (list, tuple)) else tuple(shards)
        names = expand_shards(shards)
        if not any("://" in name or name.startswith("pipe:") or Path(name).exists() for name in names):
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


@attrs.frozen
class OrderedSample:
    """A sample in its turn.

    Args:
        raw: what the shard holds.
        epoch: how often its shard was read through before; decides augmentation and captions.
        place: where the reader stands behind it.
    """

    raw: RawSample
    epoch: int
    place: Cursor


@attrs.frozen(kw_only=True)
class SampleReading:
    """How readers read.

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
        self, reader: int, epoch: int, place: Cursor, on_skip: Callable[[Skip], None], *, is_alone: bool = False
    ) -> Iterator[OrderedSample]:
        """Yield the samples of a reader from a place on.

        It ends where the order does, or where a hundred shards in a row had none, or all there are ten times.

        Args:
            reader: its number.
            epoch: its number; 0 in a stream without end.
            place: where it stands.
            on_skip: called with what had to be left out, behind that place.
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
                for sample, raw in enumerate(self._segment(segment, num_passed, report), start=num_passed + 1):
                    num_empty = 0
                    yield OrderedSample(raw, segment.epoch, Cursor(turn, number, sample))
                if num_empty >= min(MAX_EMPTY_SHARDS, MAX_EMPTY_ROUNDS * len(self.shards.names)):
                    return

    def _segment(self, segment: Segment, num_passed: int, on_skip: Callable[[Skip], None]) -> Iterator[RawSample]:
        """Yield the samples of a segment but for the first ones, of which nothing is reported again."""
        passing = True

        def report(skip: Skip) -> None:
            if not passing:
                on_skip(skip)

        # What stands in front of the segment is another reader's.
        read = self.shards.read(segment.shard, report, self.limits)
        raw_samples: Iterator[RawSample] = islice(read, segment.start, segment.stop, segment.stride)
        if self.shuffle_buffer:
            rng = seeded_rng(self.seed, "samples", segment.epoch, segment.number, segment.start)
            raw_samples = shuffled_at_once(raw_samples, self.shuffle_buffer, rng)
        for _ in islice(raw_samples, num_passed):
            pass
        passing = False
        yield from raw_samples


def find_dead(reader: ShardReader, limits: SampleLimits) -> dict[int, tuple[Skip, ...]]:
    """Return the numbers of the shards that have no sample, and what is said of each; more than can be tried have none.

    One whose store or disk failed may have some another time.
    """
    names = reader.names
    if len(names) > MOST_COUNTED:
        return {}

    def tried(name: str) -> tuple[Skip, ...] | None:
        skips: list[Skip] = []
        first = next(iter(reader.read(name, skips.append, limits)), None)
        is_alive = first is not None or any(skip.reason == CONNECTION_FAILED for skip in skips)
        return None if is_alive else tuple(skips)

    with ThreadPoolExecutor(_NUM_TRIED_AT_ONCE) as pool:
        found = list(pool.map(tried, names))
    return {number: skips for number, skips in enumerate(found) if skips is not None}

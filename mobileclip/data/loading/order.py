"""The order of a run's samples: a function of the spec and of the step, not of who reads them or how often it stopped.

Samples come from a number of *readers*, which the spec names. Sample `n` of an epoch, or of a stream without end, is
the next usable one of reader `n % num_readers`, so every batch has the same share of every reader. Processes and their
workers divide the readers among them; whoever has a reader reads the same samples in the same order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Literal, get_args

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.data.randomness import random_index, seeded_rng, shuffled

Sampling = Literal["epoch", "endless", "with_replacement"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
NUM_READERS = 96
"""Divided by most numbers of processes that machines have, and enough for many workers."""
READERS_OF_A_SHARD = 4


@attrs.frozen(kw_only=True)
class Segment:
    """Samples of one shard that a reader reads one after another.

    Args:
        shard: its name.
        number: of the shard among those of its source; with the seed, it decides the order of its samples.
        epoch: how often the shard was read through before, or with replacement the number of the draw; decides
            augmentations and captions.
        start: number of the first sample.
        stop: number of the one behind the last; None for all that there are.
    """

    shard: str
    number: int
    epoch: int
    start: int = 0
    stop: int | None = None


@attrs.frozen(order=True)
class Place:
    """Where a reader stands.

    Args:
        turn: which of its turns it is: without end, of drawing a shard; in `epoch`, 0, or how many readers' samples it
            took over after its own.
        segment: which of the turn's segments.
        sample: how many samples of the segment, usable or not, lie behind it.
    """

    turn: int = 0
    segment: int = 0
    sample: int = 0


@attrs.frozen(kw_only=True)
class Share:
    """Who reads: one of the workers of one of the processes.

    Args:
        rank: of the process.
        world_size: number of processes; divides the number of readers.
        worker: number of the worker in its process.
        num_workers: of every process.
    """

    rank: int
    world_size: int
    worker: int
    num_workers: int

    def readers(self, num_readers: int) -> range:
        """Return the numbers of the readers that this worker has."""
        return range(num_readers)[self.rank :: self.world_size][self.worker :: self.num_workers]


class Order(ABC):
    """What every reader reads, turn by turn.

    Args:
        num_readers: that the samples come from.
    """

    num_readers: int

    @abstractmethod
    def segments(self, epoch: int, reader: int, turn: int) -> Sequence[Segment] | None:
        """Return what a reader reads at one of its turns; None behind the last of an epoch."""

    @abstractmethod
    def step(self, step: int, batch_size: int) -> tuple[int, range]:
        """Return the epoch of a step of a stream, and the numbers of its samples.

        Args:
            step: its number.
            batch_size: of all processes together.
        """

    @abstractmethod
    def steps(self, batch_size: int) -> Iterator[range]:
        """Yield the numbers of the samples of every step of an epoch; the last one may have fewer."""

    def check_processes(self, world_size: int) -> None:
        """Refuse a number of processes that the readers cannot be divided among.

        Raises:
            ValueError: if it does not divide the number of readers.
        """
        if self.num_readers % world_size:
            raise ValueError(
                f"{self.num_readers} readers cannot be divided among {world_size} processes: there are as many as "
                "divide num_readers and the data has samples, or shards in endless sampling, for. Choose num_readers "
                f"as a multiple of {world_size}, or split the shards up"
            )


@attrs.frozen(kw_only=True)
class EpochOrder(Order):
    """Every sample once an epoch.

    The shuffled shards are one row of samples, which is cut into as many equal parts as there are readers. A reader
    that lost samples goes on with the next one's.

    Args:
        names: of the shards.
        sizes: number of samples in each.
        most_readers: number of readers, or the largest divisor of it of which there are not more than samples, and not
            more than four to a shard: each passes over what is not its own.
        seed: of the order.
        shuffle: whether to shuffle the shards.

    Raises:
        ValueError: if there is no sample.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...] = attrs.field(repr=False)
    most_readers: int
    seed: int
    shuffle: bool
    num_readers: int = attrs.field(init=False)

    @num_readers.default
    def _num_readers(self) -> int:
        if self.num_samples == 0:
            raise ValueError(f"not one sample is in {len(self.names)} shards")
        most = min(self.num_samples, READERS_OF_A_SHARD * len(self.names))
        return next(number for number in _divisors(self.most_readers) if number <= most)

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch."""
        return sum(self.sizes)

    def segments(self, epoch: int, reader: int, turn: int) -> Sequence[Segment] | None:
        """Return a reader's part of an epoch, or the one behind, by the turn; None where it had all."""
        if turn == self.num_readers:
            return None
        shards, ends = self._row(epoch)
        part = (reader + turn) % self.num_readers
        # Longer parts come first, as their readers have the last samples of the epoch.
        size, num_longer = divmod(self.num_samples, self.num_readers)
        start = part * size + min(part, num_longer)
        stop = start + size + (part < num_longer)
        first, last = np.searchsorted(ends, (start, stop - 1), side="right").tolist()
        segments = []
        for place in range(first, last + 1):
            shard = int(shards[place])
            begin = int(ends[place]) - self.sizes[shard]
            segments.append(
                Segment(
                    shard=self.names[shard],
                    number=shard,
                    epoch=epoch,
                    start=max(0, start - begin),
                    # To the very end: what is there beyond the size that was said is not lost.
                    stop=stop - begin if stop < ends[place] else None,
                )
            )
        return segments

    def step(self, step: int, batch_size: int) -> tuple[int, range]:
        """Return the epoch of a step and the numbers of its samples; an epoch's last, incomplete batch is left out.

        Raises:
            ValueError: if there are fewer samples than one batch needs.
        """
        per_epoch = self.num_samples // batch_size
        if per_epoch == 0:
            raise ValueError(f"{self.num_samples} samples do not fill a batch of {batch_size}")
        epoch, place = divmod(step, per_epoch)
        return epoch, range(place * batch_size, (place + 1) * batch_size)

    def steps(self, batch_size: int) -> Iterator[range]:
        """Yield the numbers of the samples of every step of an epoch; the last one may have fewer."""
        numbers = range(self.num_samples)
        return (numbers[start : start + batch_size] for start in numbers[::batch_size])

    def _row(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the shards in the epoch's order, and the numbers of samples up to the end of each."""
        return _row(self.sizes, (self.seed, epoch) if self.shuffle else None)


@attrs.frozen(kw_only=True)
class EndlessOrder(Order):
    """Shuffled shards without end: all of them once, then all of them in another order; nothing need be counted.

    Every reader draws whole shards in turn. Sources have the same share of every batch, as their weights say.
    With replacement, every draw is among all shards: some come again before others have come.

    Args:
        sources: names of the shards of each source.
        weights: share of each source's samples; none for one of its share of the shards.
        most_readers: number of readers, or the largest divisor of it that there are shards for.
        seed: of the order.
        shuffle: whether to shuffle the shards.
        replacement: whether to draw them with replacement, shuffled or not.

    Raises:
        ValueError: if there are not as many weights as sources, or a source's is too small for a reader.
    """

    sources: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...] = ()
    most_readers: int
    seed: int
    shuffle: bool
    replacement: bool = False
    num_readers: int = attrs.field(init=False)
    _readers: tuple[tuple[int, int, int], ...] = attrs.field(init=False, repr=False)
    """Of each reader: its source, its number among the source's, and how many these are."""

    def __attrs_post_init__(self) -> None:
        sources = self.sources if self.weights else (tuple(name for names in self.sources for name in names),)
        weights = self.weights or (1.0,)
        if len(weights) != len(sources):
            raise ValueError(f"there are {len(sources)} sources and {len(weights)} weights; give each source one")
        object.__setattr__(self, "sources", sources)
        # More readers than shards would have a shard's samples of two epochs at once.
        fitting = (
            one
            for one in _divisors(self.most_readers)
            if all(1 <= own <= len(names) for own, names in zip(_counts(weights, one), sources, strict=True))
        )
        num_readers = next(fitting, self.most_readers)
        object.__setattr__(self, "num_readers", num_readers)
        object.__setattr__(self, "_readers", _dealt(_counts(weights, num_readers)))

    def segments(self, epoch: int, reader: int, turn: int) -> Sequence[Segment]:
        """Return the shard that a reader draws at one of its turns, of which there is no last."""
        del epoch
        source, number, num_own = self._readers[reader]
        names = self.sources[source]
        draw = turn * num_own + number
        if self.replacement:
            shard = random_index(seeded_rng(self.seed, "draw", draw, source), len(names))
            return (Segment(shard=names[shard], number=shard, epoch=draw),)
        times, place = divmod(draw, len(names))
        shard = shard_order(len(names), (self.seed, times, source))[place] if self.shuffle else place
        return (Segment(shard=names[shard], number=shard, epoch=times),)

    def step(self, step: int, batch_size: int) -> tuple[int, range]:
        """Return the numbers of a step's samples; all of them are of epoch 0."""
        return 0, range(step * batch_size, (step + 1) * batch_size)

    def steps(self, batch_size: int) -> Iterator[range]:
        """Yield the numbers of the samples of every step, without end."""
        return (self.step(step, batch_size)[1] for step in count())

    def start(self, epoch: int) -> tuple[Place, ...]:
        """Return where every reader stands once all shards were drawn so often."""
        return tuple(
            Place(epoch * math.ceil(len(self.sources[source]) / num_own)) for source, _, num_own in self._readers
        )


@lru_cache(maxsize=4)
def shard_order(num_shards: int, names: tuple[int, ...]) -> list[int]:
    """Return the order of so many shards, which a seed and what it is for decide; not to be changed."""
    seed, *purpose = names
    return list(shuffled(range(num_shards), num_shards, seeded_rng(seed, "shards", *purpose)))[::-1]


@lru_cache(maxsize=2)
def _row(sizes: tuple[int, ...], names: tuple[int, ...] | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    shards = np.array(range(len(sizes)) if names is None else shard_order(len(sizes), names), dtype=np.int64)
    shards = shards[np.array(sizes, dtype=np.int64)[shards] > 0]
    return shards, np.cumsum(np.array(sizes, dtype=np.int64)[shards])


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


def _counts(weights: Sequence[float], num_readers: int) -> list[int]:
    """Return how many readers each source has: its share, rounded so that the sum is right."""
    exact = [weight / math.fsum(weights) * num_readers for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda source: (counts[source] - exact[source], source))
    for source in by_rest[: num_readers - sum(counts)]:
        counts[source] += 1
    return counts


def _dealt(counts: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return source, number and count of every reader, the sources spread over them evenly."""
    if 0 in counts:
        raise ValueError(
            f"source {counts.index(0)} has too small a weight: of {sum(counts)} readers it gets none; give more "
            "num_readers, or a larger weight"
        )
    places = sorted(
        ((number + 0.5) / own, source, number) for source, own in enumerate(counts) for number in range(own)
    )
    return tuple((source, number, counts[source]) for _, source, number in places)

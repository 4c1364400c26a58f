"""The order of a run's samples: a function of the spec and of the step, not of who reads them or how often it stopped.

Samples come from a number of *readers*, which the spec names. Sample `n` of an epoch, or of a stream without end, is
the next usable one of reader `n % num_readers`, so every batch has the same share of every reader. Processes and their
workers divide the readers among them; whoever has a reader reads the same samples in the same order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import count, product
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
VERSION = 2
"""Of the order: positions of another one go on where an epoch begins."""
MOST_OFF = 0.02
"""By which a source's share of the readers may differ from the asked one."""
_GOLDEN = (math.sqrt(5) - 1) / 2


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
        stride: from one sample to the next; others have those in between.
    """

    shard: str
    number: int
    epoch: int
    start: int = 0
    stop: int | None = None
    stride: int = 1


@attrs.frozen(order=True)
class Cursor:
    """Where a reader stands.

    Args:
        turn: which of its turns it is: of drawing a shard; in `epoch`, of a part of the samples.
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

    @abstractmethod
    def next_epoch(self, step: int, batch_size: int, places: Collection[Cursor]) -> tuple[int, tuple[Cursor, ...]]:
        """Return how many steps to leave out, and where readers stand then, so that a stream goes on with an epoch.

        Args:
            step: the one to come.
            batch_size: of all processes together.
            places: where readers stand.
        """

    def without(self, dead: tuple[int, ...]) -> Order:
        """Return the order where these shards, by number, are known to have no samples."""
        del dead
        return self

    def is_repeat(self, turn: int) -> bool:
        """Return whether a reader reads samples at one of its turns that a reader has had in this epoch."""
        del turn
        return False

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

    The shuffled shards are one row of samples, which is cut into as many equal parts as there are readers. Where shards
    are known to be dead, an epoch is as long as before: place `n` has the living sample `n` modulo their number. So all
    come equally often, and none twice in a batch. A reader that lost other samples reads its own part again; one that
    has none goes on in others' parts, far from where they are.

    Args:
        names: of the shards.
        sizes: number of samples in each, as they are said.
        dead: numbers of the shards that have none all the same.
        most_readers: number of readers, or the largest divisor of it of which there are not more than samples, and not
            more than four to a shard: each passes over what is not its own.
        seed: of the order.
        shuffle: whether to shuffle the shards.

    Raises:
        ValueError: if there is no sample.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...] = attrs.field(repr=False)
    dead: tuple[int, ...] = ()
    most_readers: int
    seed: int
    shuffle: bool
    num_readers: int = attrs.field(init=False)
    _living: tuple[int, ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        living = [*self.sizes]
        for shard in self.dead:
            living[shard] = 0
        if not any(living):
            raise ValueError(f"not one sample is in {len(self.names)} shards")
        most = min(self.num_places, READERS_OF_A_SHARD * len(self.names))
        object.__setattr__(self, "_living", tuple(living))
        object.__setattr__(self, "num_readers", next(one for one in _divisors(self.most_readers) if one <= most))

    @property
    def num_places(self) -> int:
        """Number of samples that an epoch of a stream has, dead shards' included."""
        return sum(self.sizes)

    @property
    def num_samples(self) -> int:
        """Number of living samples."""
        return sum(self._living)

    def without(self, dead: tuple[int, ...]) -> EpochOrder:
        """Return the order where these shards, by number, are known to have no samples."""
        return attrs.evolve(self, dead=dead)

    def is_repeat(self, turn: int) -> bool:
        """Return whether a reader reads samples at one of its turns that a reader has had in this epoch."""
        return turn > 0

    def segments(self, epoch: int, reader: int, turn: int) -> Sequence[Segment] | None:
        """Return the part of an epoch that a reader reads at one of its turns; None where it tried all."""
        last_planned = (self.num_places - 1) // self.num_samples
        if turn > last_planned + self.num_readers:
            return None
        # Who lost samples reads its own part again, which nobody else does, and then others.
        detour = max(0, turn - last_planned - 1)
        part = reader - min(turn, last_planned) * self.num_samples + detour * _stride(self.num_readers)
        part %= self.num_readers
        # Longer parts come first, as their readers have the last samples of the epoch.
        size, num_longer = divmod(self.num_samples, self.num_readers)
        start = part * size + min(part, num_longer)
        stop = start + size + (part < num_longer)
        # The part's own reader, and others that lost samples, are elsewhere in it.
        middle = start + int((stop - start) * (detour * _GOLDEN % 1))
        return [*self._cut(epoch, middle, stop), *self._cut(epoch, start, middle)]

    def _cut(self, epoch: int, start: int, stop: int) -> Iterator[Segment]:
        """Yield what lies between two places of the row of samples."""
        if start == stop:
            return
        shards, ends = _row(self._living, (self.seed, epoch) if self.shuffle else None)
        first, last = np.searchsorted(ends, (start, stop - 1), side="right").tolist()
        for place in range(first, last + 1):
            shard = int(shards[place])
            begin = int(ends[place]) - self.sizes[shard]
            yield Segment(
                shard=self.names[shard],
                number=shard,
                epoch=epoch,
                start=max(0, start - begin),
                # To the very end: what is there beyond the size that was said is not lost.
                stop=stop - begin if stop < ends[place] else None,
            )

    def step(self, step: int, batch_size: int) -> tuple[int, range]:
        """Return the epoch of a step and the numbers of its samples; an epoch's last, incomplete batch is left out.

        Raises:
            ValueError: if there are fewer samples than one batch needs.
        """
        per_epoch = self.num_places // batch_size
        if per_epoch == 0:
            raise ValueError(f"{self.num_places} samples do not fill a batch of {batch_size}")
        epoch, place = divmod(step, per_epoch)
        return epoch, range(place * batch_size, (place + 1) * batch_size)

    def steps(self, batch_size: int) -> Iterator[range]:
        """Yield the numbers of the samples of every step of an epoch; the last one may have fewer."""
        numbers = range(self.num_samples)
        return (numbers[start : start + batch_size] for start in numbers[::batch_size])

    def next_epoch(self, step: int, batch_size: int, places: Collection[Cursor]) -> tuple[int, tuple[Cursor, ...]]:
        """Return how many steps are left of an epoch."""
        del places
        return -step % (self.num_places // batch_size), ()


@attrs.frozen(kw_only=True)
class EndlessOrder(Order):
    """Shuffled shards without end: all of them once, then all of them in another order; nothing need be counted.

    Every reader draws whole shards in turn. Sources have the same share of every batch, as their weights say to within
    2 %.
    With replacement, every draw is among all shards: some come again before others have come.

    Args:
        sources: names of the shards of each source.
        weights: share of each source's samples; none for one of its share of the shards.
        most_readers: number of readers, or the largest divisor of it that there are shards for. Where none has the
            asked shares, up to four readers share out a shard's samples, or their number is no divisor.
        seed: of the order.
        shuffle: whether to shuffle the shards.
        replacement: whether to draw them with replacement, shuffled or not.
        may_share: whether any number of readers may have a shard at once, as those that take turns.

    Raises:
        ValueError: if there are not as many weights as sources, or the shares cannot be had.
    """

    sources: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...] = ()
    most_readers: int
    seed: int
    shuffle: bool
    replacement: bool = False
    may_share: bool = False
    num_readers: int = attrs.field(init=False)
    _readers: tuple[tuple[int, int, int], ...] = attrs.field(init=False, repr=False)
    """Of each reader: its source, its number among the source's, and how many these are."""
    _parts: tuple[int, ...] = attrs.field(init=False, repr=False)
    """Of each source: how many readers share out a shard's samples."""

    def __attrs_post_init__(self) -> None:
        sources = self.sources if self.weights else (tuple(name for names in self.sources for name in names),)
        weights = self.weights or (1.0,)
        if len(weights) != len(sources):
            raise ValueError(f"there are {len(sources)} sources and {len(weights)} weights; give each source one")
        object.__setattr__(self, "sources", sources)
        there = [self.most_readers if self.may_share else len(names) for names in sources]
        counts = _fitting(weights, there, self.most_readers)
        object.__setattr__(self, "num_readers", sum(counts))
        object.__setattr__(
            self, "_parts", tuple(math.ceil(own / most) for own, most in zip(counts, there, strict=True))
        )
        object.__setattr__(self, "_readers", _dealt(counts))

    def segments(self, epoch: int, reader: int, turn: int) -> Sequence[Segment]:
        """Return the shard that a reader draws at one of its turns."""
        del epoch
        source, number, num_own = self._readers[reader]
        names, num_parts = self.sources[source], self._parts[source]
        draw, num_places = turn * num_own + number, len(names) * num_parts
        if self.replacement:
            times, place = draw, random_index(seeded_rng(self.seed, "draw", draw, source), num_places)
        else:
            times, place = divmod(draw, num_places)
            if self.shuffle:
                place = shard_order(num_places, (self.seed, times, source))[place]
            elif num_parts > 1:  # a reader whose part is empty has another one next time
                place = (place + times) % num_places
        part, shard = divmod(place, len(names))
        return (Segment(shard=names[shard], number=shard, epoch=times, start=part, stride=num_parts),)

    def step(self, step: int, batch_size: int) -> tuple[int, range]:
        """Return the numbers of a step's samples; all of them are of epoch 0."""
        return 0, range(step * batch_size, (step + 1) * batch_size)

    def steps(self, batch_size: int) -> Iterator[range]:
        """Yield the numbers of the samples of every step, without end."""
        return (self.step(step, batch_size)[1] for step in count())

    def start(self, epoch: int) -> tuple[Cursor, ...]:
        """Return where every reader stands once all shards were drawn so often."""
        return tuple(Cursor(epoch * turns) for turns in self._turns)

    def next_epoch(self, step: int, batch_size: int, places: Collection[Cursor]) -> tuple[int, tuple[Cursor, ...]]:
        """Return where readers stand once all shards were drawn as often as by any of them, and once more."""
        del step, batch_size
        return 0, self.start(1 + max(place.turn for place in places) // min(self._turns))

    def num_in_batch(self, batch_size: int) -> tuple[int, ...]:
        """Return how many samples of each source a batch has at most."""
        counts = {source: num_own for source, _, num_own in self._readers}
        return tuple(math.ceil(batch_size * counts[source] / self.num_readers) for source in range(len(self.sources)))

    @property
    def _turns(self) -> list[int]:
        """The turns in which all shards of its source are drawn, of every reader."""
        return [math.ceil(len(self.sources[one]) * self._parts[one] / own) for one, _, own in self._readers]


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


def _stride(num_readers: int) -> int:
    """Return a step that comes past all readers, and from one to others far away first."""
    return next(one for one in range(round(_GOLDEN * num_readers), num_readers + 1) if math.gcd(one, num_readers) == 1)


def _fitting(weights: Sequence[float], num_shards: Sequence[int], most_readers: int) -> list[int]:
    """Return how many readers each source has: not so many that they would have copies of its samples."""
    shares = [weight / math.fsum(weights) for weight in weights]
    divisors, several = _divisors(most_readers), range(1, READERS_OF_A_SHARD + 1)
    nearest = (math.inf, [1])
    for numbers in (divisors, sorted({*range(1, most_readers)} - {*divisors}, reverse=True)):
        for each, number in product(several, numbers):
            counts = _counts(shares, number)
            possible = [min(max(1, own), each * there) for own, there in zip(counts, num_shards, strict=True)]
            off = max(abs(own / sum(possible) - share) for own, share in zip(possible, shares, strict=True))
            if counts == possible and off <= MOST_OFF:
                return counts
            nearest = min(nearest, (off, possible))
    counts = _counts(shares, most_readers)
    if 0 in counts:
        raise ValueError(
            f"source {counts.index(0)} has too small a weight: of {most_readers} readers it gets none; give more "
            "num_readers, or a larger weight"
        )
    had = ", ".join(f"{own / sum(nearest[1]):.3g}" for own in nearest[1])
    asked = ", ".join(f"{share:.3g}" for share in shares)
    raise ValueError(
        f"sources of {', '.join(map(str, num_shards))} shards cannot have the shares {asked} of a batch without copies "
        f"of a sample in it; the nearest that is possible is {had}. Give these as weights, or split the shards up"
    )


def _counts(shares: Sequence[float], num_readers: int) -> list[int]:
    """Return how many readers each source has: its share, rounded so that the sum is right."""
    exact = [share * num_readers for share in shares]
    counts = [math.floor(own) for own in exact]
    by_rest = sorted(range(len(exact)), key=lambda source: (counts[source] - exact[source], source))
    for source in by_rest[: num_readers - sum(counts)]:
        counts[source] += 1
    return counts


def _dealt(counts: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return source, number and count of every reader, the sources spread over them evenly."""
    places = sorted(
        ((number + 0.5) / own, source, number) for source, own in enumerate(counts) for number in range(own)
    )
    return tuple((source, number, counts[source]) for _, source, number in places)

"""Sample order without epochs: shards drawn without end from one or several sources with fixed shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import attrs

from mobileclip.data.loading.order import READERS_OF_A_SHARD, Cursor, Order, Segment, divisors, shard_order
from mobileclip.data.randomness import random_index, seeded_rng

MOST_OFF = 0.02
"""By which a source's share of the readers may differ from the asked one."""


@attrs.frozen(kw_only=True)
class EndlessOrder(Order):
    """Shuffled shards without end: all of them once, then all of them in another order; nothing need be counted.

    Sample `n` of a run is the next one of reader `n % num_readers`, and every reader draws whole shards in turn.
    Sources have the same share of every batch, as their weights say to within 2 %. With replacement, every draw is
    among all shards: some come again before others have come.

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

    def start(self, epoch: int) -> tuple[Cursor, ...]:
        """Return the readers' positions after all shards were drawn `epoch` times."""
        return tuple(Cursor(epoch * turns) for turns in self._turns)

    def num_in_batch(self, batch_size: int) -> tuple[int, ...]:
        """Return how many samples of each source a batch has at most."""
        counts = {source: num_own for source, _, num_own in self._readers}
        return tuple(math.ceil(batch_size * counts[source] / self.num_readers) for source in range(len(self.sources)))

    @property
    def _turns(self) -> list[int]:
        """The turns in which all shards of its source are drawn, of every reader."""
        return [math.ceil(len(self.sources[one]) * self._parts[one] / own) for one, _, own in self._readers]


def _fitting(weights: Sequence[float], num_shards: Sequence[int], most_readers: int) -> list[int]:
    """Return how many readers each source has: not so many that they would have copies of its samples."""
    shares = [weight / math.fsum(weights) for weight in weights]
    dividing, several = divisors(most_readers), range(1, READERS_OF_A_SHARD + 1)
    nearest = (math.inf, [1])
    for numbers in (dividing, sorted({*range(1, most_readers)} - {*dividing}, reverse=True)):
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

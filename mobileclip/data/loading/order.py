"""The order of a run's samples: a function of the spec and of the step, not of who reads them or how often it stopped.

Samples come from a number of *readers*, which the spec names. Sample `n` of an epoch, or of a stream without end, is
the next usable one of reader `n % num_readers`, so every batch has the same share of every reader. Processes and their
workers divide the readers among them; whoever has a reader reads the same samples in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, get_args

import attrs

from mobileclip.data.randomness import seeded_rng, shuffled

Sampling = Literal["epoch", "endless", "with_replacement"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
NUM_READERS = 96
"""Divided by most numbers of processes that machines have, and enough for many workers."""
READERS_OF_A_SHARD = 4
VERSION = 2
"""Of the order: positions of another one go on where an epoch begins."""

Place = tuple[int, int, int, int]
"""A reader, and where it stands: turn, segment and sample, see `Cursor`."""


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


def rows(places: Mapping[int, Cursor]) -> tuple[Place, ...]:
    """Return where readers stand, by their numbers, as a `StreamPosition` has it."""
    return tuple((reader, place.turn, place.segment, place.sample) for reader, place in places.items())


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


@lru_cache(maxsize=4)
def shard_order(num_shards: int, names: tuple[int, ...]) -> list[int]:
    """Return the order of so many shards, which a seed and what it is for decide; not to be changed."""
    seed, *purpose = names
    return list(shuffled(range(num_shards), num_shards, seeded_rng(seed, "shards", *purpose)))[::-1]


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]

"""The order of a run's samples: a function of the spec and of the step, not of who reads them or how often it stopped.

Samples come from a number of *readers*, which the spec names. Sample `n` of an epoch, or of a stream without end, is
the next usable one of reader `n % num_readers`, so every batch has the same share of every reader. Processes and their
workers divide the readers among them; each reader gives the same samples in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, get_args

import attrs
from attrs import validators

from mobileclip.data.randomness import seeded_rng, shuffled
from mobileclip.strict import strict

Sampling = Literal["epoch", "endless", "with_replacement"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
NUM_READERS = 96
"""Divided by most numbers of processes that machines have, and enough for many workers."""
READERS_OF_A_SHARD = 4

CursorRow = tuple[int, int, int, int]
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


def rows(places: Mapping[int, Cursor]) -> tuple[CursorRow, ...]:
    """Return the readers' positions as rows of a `StreamPosition`."""
    return tuple((reader, place.turn, place.segment, place.sample) for reader, place in places.items())


@attrs.frozen(kw_only=True)
class Share:
    """The place of one loader worker among the workers of all processes.

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
    """Interface of an order: what each reader reads, turn by turn.

    Args:
        num_readers: that the samples come from.
    """

    num_readers: int

    @abstractmethod
    def segments(self, epoch: int, reader: int, turn: int) -> Sequence[Segment] | None:
        """Return the segments that a reader reads at one of its turns; None after the last turn of an epoch."""

    @abstractmethod
    def step(self, step: int, batch_size: int) -> tuple[int, range]:
        """Return the epoch of a step of a stream, and the numbers of its samples.

        Args:
            step: its number.
            batch_size: of all processes together.
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
    """Return a permutation of shards by seed and purpose; another one would change every run."""
    seed, *purpose = names
    return list(shuffled(range(num_shards), num_shards, seeded_rng(seed, "shards", *purpose)))[::-1]


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


def _places(values: Iterable[Iterable[int]]) -> tuple[CursorRow, ...]:
    return tuple((reader, turn, segment, sample) for reader, turn, segment, sample in values)


@attrs.frozen(kw_only=True, field_transformer=strict)
class StreamPosition:
    """A place in a stream of batches; `to_json` of `mobileclip.serialization` writes it beside a checkpoint.

    Which samples are good is known only after decoding them. So a position says how far every reader of
    this module has come. Of several processes each knows its own readers; put together, their
    positions are those of the run, whatever number of processes goes on with it.

    Args:
        first_batch: number of batches that were consumed.
        num_readers: of the order; 0 where no place is known, at the start of a run or of an epoch.
        places: reader, turn, segment and sample of each, see `Cursor`.
        skipped: number of samples and shards that were left out since the start, by reason.
        data: digest of names and sizes of the shards; empty where nothing says it.
        dead: numbers of the shards that the epoch does without, see `mobileclip.data.loading.epoch_order.EpochOrder`.
        found_dead: numbers of those without samples that are known by now; once a run resumes, the epochs that begin
            from there on do without them.

    Raises:
        ValueError: if a number is negative, or a place is of a reader that there is not.
    """

    first_batch: int = attrs.field(default=0, validator=validators.ge(0))
    num_readers: int = attrs.field(default=0, validator=validators.ge(0))
    places: tuple[CursorRow, ...] = attrs.field(default=(), converter=_places)
    skipped: Mapping[str, int] = attrs.field(
        factory=dict, validator=validators.deep_mapping(validators.instance_of(str), validators.ge(0))
    )
    data: str = ""
    dead: tuple[int, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.ge(0)))
    found_dead: tuple[int, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.ge(0)))

    @property
    def cursors(self) -> dict[int, Cursor]:
        """Where readers stand, by their numbers."""
        return {reader: Cursor(*place) for reader, *place in self.places}

    @property
    def names(self) -> str:
        """The part of the digest that stands for the shards' names."""
        return self.data.partition(":")[0]

    def is_in(self, data: str) -> bool:
        """Return whether this can be a position in data with a digest: the sizes that both know are equal."""
        names, _, sizes = data.partition(":")
        pairs = zip(self.data.partition(":")[2].split("."), sizes.split("."), strict=False)
        return self.names in ("", names) and all(one == other or "" in (one, other) for one, other in pairs)

    @places.validator
    def _check_places(self, _: object, places: tuple[CursorRow, ...]) -> None:
        if any(min(place) < 0 or place[0] >= self.num_readers for place in places):
            raise ValueError(f"places must be of the {self.num_readers} readers, and not negative")


def joined_positions(positions: Sequence[StreamPosition]) -> StreamPosition:
    """Return the position of a run, merged from those of its processes.

    Raises:
        ValueError: if they are not of one step and one order.
    """
    first = positions[0]
    if any(one.first_batch != first.first_batch for one in positions):
        raise ValueError(f"the processes stand behind different batches: {[one.first_batch for one in positions]}")
    if any((one.names, one.dead) != (first.names, first.dead) for one in positions):
        raise ValueError(
            "the processes read different data, or find other shards without samples; give all of them the same files"
        )
    return attrs.evolve(
        first,
        num_readers=max(one.num_readers for one in positions),
        places=sorted({place for one in positions for place in one.places}),
        skipped=sum((Counter(one.skipped) for one in positions), Counter()),
        found_dead=tuple(sorted({number for one in positions for number in one.found_dead})),
    )

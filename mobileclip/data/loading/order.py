"""The order of a run's samples: a function of spec and step, independent of processes, workers and restarts.

Samples come from `num_readers` *readers*. Sample `n` of an epoch, or of an endless stream, is the next usable sample of
reader `n % num_readers`, so all readers have equal shares of every batch. Each process, and each worker of a process,
runs some of the readers; a reader always yields the same samples in the same order.

A reader skips bad samples and unreadable shards. To replace skipped samples, the reader first repeats its own samples
and then reads other readers' samples. To resume, a run needs only the positions of all readers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import count, product
from typing import Literal, NamedTuple, get_args

import attrs
import numpy as np
import numpy.typing as npt
from attrs import validators

from mobileclip.data.randomness import random_index, seeded_rng, shuffled
from mobileclip.strict import strict

Sampling = Literal["epoch", "endless", "with_replacement"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
NUM_READERS = 96
"""Default number of readers: divisible by most numbers of processes, and enough for many workers."""
READERS_OF_A_SHARD = 4
MAX_SHARE_ERROR = 0.02
"""Maximum difference between a source's share of the readers and the requested share."""
_GOLDEN = (math.sqrt(5) - 1) / 2

CursorRow = tuple[int, int, int, int]
"""A reader and its position: turn, segment and sample; see `Cursor`."""


@attrs.frozen(kw_only=True)
class Segment:
    """The samples of one shard that one reader reads in one pass.

    Args:
        shard: name of the shard, such as a path or URL.
        number: index of the shard in its source; with the seed, the index determines the order of the shard's samples.
        epoch: number of earlier passes over the shard or, with replacement, the index of the draw; determines
            augmentations and captions.
        start: index of the first sample.
        stop: index after the last sample; None for all samples.
        stride: step from sample to sample; other readers read the samples in between.
        is_repeat: whether a reader has already read the samples in this epoch.
    """

    shard: str
    number: int
    epoch: int
    start: int = 0
    stop: int | None = None
    stride: int = 1
    is_repeat: bool = False


class Cursor(NamedTuple):
    """Position of a reader.

    Args:
        turn: index of the reader's turn; a turn draws one shard or, with sampling `epoch`, reads one part of the
            samples.
        segment: index of the segment in the turn.
        sample: number of the segment's samples that were read so far, including unusable samples.
    """

    turn: int = 0
    segment: int = 0
    sample: int = 0


@attrs.frozen(kw_only=True, slots=False)
class EpochOrder:
    """An order with every sample once per epoch.

    The samples of the shuffled shards form one sequence, divided into equal parts, one per reader. In every epoch, a
    reader reads its own part. A reader that skipped samples reads its part again, and then the other parts, each
    starting at a position within the part.

    Args:
        names: names of the shards.
        sizes: stated number of samples in each shard.
        most_readers: maximum number of readers. The order uses the largest divisor of this number that exceeds neither
            the number of samples nor four times the number of shards, since the readers of a shard pass over each
            other's samples.
        seed: seed of the order.
        shuffle: whether to shuffle the shards.

    Raises:
        ValueError: if the shards have no samples.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...] = attrs.field(repr=False)
    most_readers: int
    seed: int
    shuffle: bool

    def __attrs_post_init__(self) -> None:
        if not self.num_samples:
            raise ValueError(f"none of the {len(self.names)} shards has samples")

    @cached_property
    def num_samples(self) -> int:
        """Number of samples of an epoch."""
        return sum(self.sizes)

    @cached_property
    def num_readers(self) -> int:
        """Number of readers from which the samples come."""
        most = min(self.num_samples, READERS_OF_A_SHARD * len(self.names))
        return next(one for one in divisors(self.most_readers) if one <= most)

    def start(self, epoch: int) -> tuple[Cursor, ...]:
        """Return each reader's position at the start of an epoch."""
        return (Cursor(epoch * self._turns),) * self.num_readers

    def turns(self, epoch: int, first: int = 0) -> Iterator[int]:
        """Return a reader's turns in an epoch, from `first`."""
        start = epoch * self._turns
        return iter(range(max(first, start), start + self._turns))

    def segments(self, reader: int, turn: int) -> Sequence[Segment]:
        """Return the segments of a reader's turn."""
        epoch, number = divmod(turn, self._turns)
        detour = max(0, number - 1)
        part = (reader + detour * _stride(self.num_readers)) % self.num_readers
        # Longer parts come first, because their readers yield the last samples of the epoch.
        size, num_longer = divmod(self.num_samples, self.num_readers)
        start = part * size + min(part, num_longer)
        stop = start + size + (part < num_longer)
        # The part's own reader and other readers that skipped samples are at different positions of the part.
        middle = start + int((stop - start) * (detour * _GOLDEN % 1))
        cut = (*self._cut(epoch, middle, stop), *self._cut(epoch, start, middle))
        return [attrs.evolve(one, is_repeat=True) for one in cut] if number else cut

    def steps(self, first: int, batch_size: int, *, epoch: int | None = None) -> Iterator[tuple[int, range]]:
        """Yield the epoch and the sample numbers of every step.

        Args:
            first: number of the first step.
            batch_size: batch size over all processes.
            epoch: epoch of all steps, which include an incomplete last batch; None yields an endless stream of epochs
                without incomplete batches.

        Raises:
            ValueError: if an endless stream has fewer samples than one batch.
        """
        per_epoch, numbers = self.num_samples // batch_size, range(self.num_samples)
        if epoch is None and not per_epoch:
            raise ValueError(f"{self.num_samples} samples do not fill a batch of {batch_size}")
        for step in count(first):
            own, place = divmod(step, per_epoch) if epoch is None else (epoch, step)
            if not numbers[place * batch_size :]:
                return
            yield own, numbers[place * batch_size : (place + 1) * batch_size]

    @property
    def _turns(self) -> int:
        """Number of a reader's turns in an epoch: its own part twice, and every other part once."""
        return self.num_readers + 1

    def _cut(self, epoch: int, start: int, stop: int) -> Iterator[Segment]:
        """Yield the segments between two positions in the sequence of samples."""
        if start == stop:
            return
        shards, ends = _row(self.sizes, (self.seed, epoch) if self.shuffle else None)
        first, last = np.searchsorted(ends, (start, stop - 1), side="right").tolist()
        for place in range(first, last + 1):
            shard = int(shards[place])
            begin = int(ends[place]) - self.sizes[shard]
            yield Segment(
                shard=self.names[shard],
                number=shard,
                epoch=epoch,
                start=max(0, start - begin),
                # Read to the very end, so that samples beyond the stated size are not lost.
                stop=stop - begin if stop < ends[place] else None,
            )


@attrs.frozen(kw_only=True, slots=False)
class ShuffledShards:
    """An endless order of shuffled shards, reshuffled in every pass; needs no sample counts.

    Sample `n` of a run is the next sample of reader `n % num_readers`, and every reader draws whole shards. The
    sources' shares of every batch match the weights to within 2 %. With replacement, every draw is from all shards, so
    a shard may repeat before other shards occur.

    Args:
        sources: names of the shards of each source.
        weights: relative weight of each source; an empty tuple weights the sources by their numbers of shards.
        most_readers: maximum number of readers. The order uses the largest divisor of this number for which every
            reader has its own shards. If no divisor gives the requested shares, up to four readers divide a shard's
            samples, or the order uses a number that is not a divisor.
        seed: seed of the order.
        shuffle: whether to shuffle the shards.
        replacement: whether to draw shards with replacement.
        may_share: whether any number of readers may read the same shard; intended for readers that take turns.

    Raises:
        ValueError: if the numbers of weights and sources differ, or no number of readers gives the requested shares.
    """

    sources: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...] = ()
    most_readers: int
    seed: int
    shuffle: bool
    replacement: bool = False
    may_share: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "sources", (tuple(name for names in self.sources for name in names),))
        elif len(self.weights) != len(self.sources):
            raise ValueError(
                f"got {len(self.sources)} sources and {len(self.weights)} weights; give one weight per source"
            )
        _ = self._counts  # raises an error for wrong weights at construction

    @cached_property
    def num_readers(self) -> int:
        """Number of readers from which the samples come."""
        return sum(self._counts)

    def start(self, epoch: int) -> tuple[Cursor, ...]:
        """Return each reader's position after `epoch` passes over all shards."""
        return tuple(
            Cursor(epoch * math.ceil(len(self.sources[source]) * self._parts[source] / self._counts[source]))
            for source, _ in self._readers
        )

    def turns(self, epoch: int, first: int = 0) -> Iterator[int]:
        """Return an endless iterator over a reader's turns from a given turn."""
        del epoch
        return count(first)

    def segments(self, reader: int, turn: int) -> Sequence[Segment]:
        """Return the single segment of a reader's turn."""
        source, number = self._readers[reader]
        names, num_parts = self.sources[source], self._parts[source]
        draw, num_places = turn * self._counts[source] + number, len(names) * num_parts
        if self.replacement:
            times, place = draw, random_index(seeded_rng(self.seed, "draw", draw, source), num_places)
        else:
            times, place = divmod(draw, num_places)
            if self.shuffle:
                place = _shard_order(num_places, (self.seed, times, source))[place]
            elif num_parts > 1:  # a reader with an empty part gets another part next time
                place = (place + times) % num_places
        part, shard = divmod(place, len(names))
        return (Segment(shard=names[shard], number=shard, epoch=times, start=part, stride=num_parts),)

    def steps(self, first: int, batch_size: int, *, epoch: int | None = None) -> Iterator[tuple[int, range]]:
        """Yield epoch 0 and the sample numbers of every step, without end."""
        del epoch
        return ((0, range(step * batch_size, (step + 1) * batch_size)) for step in count(first))

    @cached_property
    def _counts(self) -> list[int]:
        """Number of readers of each source."""
        there = [self.most_readers if self.may_share else len(names) for names in self.sources]
        return _fitting(self.weights or (1.0,), there, self.most_readers)

    @cached_property
    def _parts(self) -> list[int]:
        """Number of readers that divide a shard's samples, for each source."""
        if self.may_share:
            return [1] * len(self.sources)
        return [math.ceil(own / len(names)) for own, names in zip(self._counts, self.sources, strict=True)]

    @cached_property
    def _readers(self) -> list[tuple[int, int]]:
        """Source of each reader, and the reader's index in its source; sources are spread evenly."""
        places = (
            ((number + 0.5) / own, source, number) for source, own in enumerate(self._counts) for number in range(own)
        )
        return [(source, number) for _, source, number in sorted(places)]


Order = EpochOrder | ShuffledShards


def _places(values: Iterable[Iterable[int]]) -> tuple[CursorRow, ...]:
    return tuple(sorted((reader, turn, segment, sample) for reader, turn, segment, sample in values))


@attrs.frozen(kw_only=True, field_transformer=strict)
class StreamPosition:
    """A position in a stream of batches, stored as JSON next to a checkpoint.

    Usable samples are known only after decoding, so the position stores the progress of every reader. Each process
    knows only its own readers; `joined_positions` merges the positions of all processes. Any number of processes can
    resume from the merged position.

    Args:
        first_batch: number of consumed batches.
        num_readers: number of readers of the order; 0 at the start of a run.
        places: one row for each reader, with the reader's number, turn, segment and sample; see `Cursor`.
        skipped: number of skipped samples and shards since the start, by reason.
        data: digest of the shards' names and, with sampling `epoch`, their sizes; empty if unknown.

    Raises:
        ValueError: if a number is negative, or `places` contains an unknown reader.
    """

    first_batch: int = attrs.field(default=0, validator=validators.ge(0))
    num_readers: int = attrs.field(default=0, validator=validators.ge(0))
    places: tuple[CursorRow, ...] = attrs.field(default=(), converter=_places)
    skipped: Mapping[str, int] = attrs.field(
        factory=dict, validator=validators.deep_mapping(validators.instance_of(str), validators.ge(0))
    )
    data: str = ""

    @property
    def cursors(self) -> dict[int, Cursor]:
        """Positions of readers by number."""
        return {reader: Cursor(*place) for reader, *place in self.places}

    @places.validator
    def _check_places(self, _: object, places: tuple[CursorRow, ...]) -> None:
        if any(min(place) < 0 or place[0] >= self.num_readers for place in places):
            raise ValueError(f"places must be non-negative, with reader numbers below num_readers ({self.num_readers})")

    def moved(self, places: Iterable[CursorRow], skipped: Iterable[str]) -> StreamPosition:
        """Return the position after one more batch.

        Args:
            places: new positions of the readers that moved.
            skipped: reasons for the batch's skips.
        """
        return attrs.evolve(
            self,
            first_batch=self.first_batch + 1,
            places={place[0]: place for place in (*self.places, *places)}.values(),
            skipped=Counter(self.skipped) + Counter(skipped),
        )


def joined_positions(positions: Sequence[StreamPosition]) -> StreamPosition:
    """Return the position of a run, merged from the positions of its processes.

    Raises:
        ValueError: if the positions belong to different batches or different data.
    """
    first = positions[0]
    if any(one.first_batch != first.first_batch for one in positions):
        raise ValueError(f"the processes are at different batches: {[one.first_batch for one in positions]}")
    if any(one.data != first.data for one in positions):
        raise ValueError("the processes read different data; pass the same files to all processes")
    return attrs.evolve(
        first,
        num_readers=max(one.num_readers for one in positions),
        places=sorted({place for one in positions for place in one.places}),
        skipped=sum((Counter(one.skipped) for one in positions), Counter()),
    )


def data_digest(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Return a hash of the sizes of shards and of the shard names relative to the common folder."""
    folder = os.path.commonprefix(names).rpartition("/")[0]  # noqa: RUF071 - names may be URLs
    return hashlib.sha256(json.dumps([[name[len(folder) :] for name in names], sizes]).encode()).hexdigest()


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


@lru_cache(maxsize=4)
def _shard_order(num_shards: int, names: tuple[int, ...]) -> list[int]:
    """Return a permutation of shards by seed and purpose. Do not change this function: all runs depend on it."""
    seed, *purpose = names
    return list(shuffled(range(num_shards), num_shards, seeded_rng(seed, "shards", *purpose)))[::-1]


@lru_cache(maxsize=2)
def _row(sizes: tuple[int, ...], names: tuple[int, ...] | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the shards with samples, in order, and the end of each shard's samples in the sequence."""
    shards = np.array(range(len(sizes)) if names is None else _shard_order(len(sizes), names), dtype=np.int64)
    shards = shards[np.array(sizes, dtype=np.int64)[shards] > 0]
    return shards, np.cumsum(np.array(sizes, dtype=np.int64)[shards])


def _stride(num_readers: int) -> int:
    """Return a step that visits all readers, distant readers first."""
    return next(one for one in range(round(_GOLDEN * num_readers), num_readers + 1) if math.gcd(one, num_readers) == 1)


def _fitting(weights: Sequence[float], num_shards: Sequence[int], most_readers: int) -> list[int]:
    """Return the number of readers of each source, so that no two readers read the same samples."""
    shares = [weight / math.fsum(weights) for weight in weights]
    dividing, several = divisors(most_readers), range(1, READERS_OF_A_SHARD + 1)
    nearest = (math.inf, [1])
    for numbers in (dividing, sorted({*range(1, most_readers)} - {*dividing}, reverse=True)):
        for each, number in product(several, numbers):
            counts = _dealt_out(shares, number)
            possible = [min(max(1, own), each * there) for own, there in zip(counts, num_shards, strict=True)]
            off = max(abs(own / sum(possible) - share) for own, share in zip(possible, shares, strict=True))
            if counts == possible and off <= MAX_SHARE_ERROR:
                return counts
            nearest = min(nearest, (off, possible))
    counts = _dealt_out(shares, most_readers)
    if 0 in counts:
        raise ValueError(
            f"source {counts.index(0)} has too small a weight: it gets none of {most_readers} readers; increase "
            "num_readers or the weight"
        )
    had = ", ".join(f"{own / sum(nearest[1]):.3g}" for own in nearest[1])
    asked = ", ".join(f"{share:.3g}" for share in shares)
    raise ValueError(
        f"sources with {', '.join(map(str, num_shards))} shards cannot be mixed in the proportions {asked} without "
        f"duplicate samples; the nearest possible proportions are {had}. Use these as weights, or split the shards"
    )


def _dealt_out(shares: Sequence[float], num_readers: int) -> list[int]:
    """Return the number of readers of each source: the source's share, rounded so that the sum is exact."""
    counts = [math.floor(share * num_readers) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda source: (counts[source] - shares[source] * num_readers, source))
    for source in by_rest[: num_readers - sum(counts)]:
        counts[source] += 1
    return counts

"""The readers of a worker: from their samples to its share of every batch, with others in the place of bad ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import attrs

from mobileclip.data.loading.batch import BatchType, BatchType_co
from mobileclip.data.loading.keeping import Keep
from mobileclip.data.loading.order import Cursor, Share, rows
from mobileclip.data.loading.shard_reader import OrderedSample, SampleReading
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.shards.files import parse
from mobileclip.data.skips import Skip, attempt
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import printable

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
        """Return what an epoch takes of a sample.

        Raises:
            BadSampleError: if the sample cannot be used.
        """

    def collate(self, examples: Sequence[ExampleType]) -> BatchType_co:
        """Return the batch of several examples."""


@attrs.frozen(kw_only=True, eq=False)
class Chunk(Generic[BatchType]):
    """What a worker hands over: its share of a step.

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
    places: tuple[tuple[int, int, int, int], ...] = ()
    dead: tuple[int, ...] = ()
    gave_up: bool = False


@attrs.frozen(kw_only=True, eq=False)
class _Made:
    """An example and the number of its sample in the epoch."""

    number: int
    sample: OrderedSample
    example: Any


class OpenReaders(Generic[BatchType]):
    """The readers of a worker in one epoch, or in a stream without end.

    Args:
        share: which readers these are.
        epoch: its number.
        places: where they stand, those that do not stand at the start.
        is_alone: whether each reads its own part of the epoch alone, and ends with it.
        reading: how they read.
        maker: of examples and batches.
        keep: which samples are used; None for all.
        on_sample: called with every sample before an example is made of it.
        left_out: what the first chunk tells of, beside what is left out for it.
    """

    def __init__(
        self,
        *,
        share: Share,
        epoch: int,
        places: Mapping[int, Cursor],
        is_alone: bool,
        reading: SampleReading,
        maker: Maker[Any, Any, BatchType],
        keep: Keep | None,
        on_sample: Callable[[OrderedSample], None],
        left_out: Sequence[Skip] = (),
    ) -> None:
        self.epoch = epoch
        self._is_alone = is_alone
        self._maker = maker
        self._keep = keep
        self._num_unwanted = 0
        self._on_sample = on_sample
        self._order = reading.order
        self._num_readers = reading.order.num_readers
        self._skips = [*left_out]
        self._dead: list[int] = []
        self._moved: dict[int, Cursor] = {}
        told = self._skips.append, self._dead.append
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
        moved, self._moved = self._moved, {}
        skips, dead, num_unwanted = tuple(self._skips), tuple(self._dead), self._num_unwanted
        self._skips.clear()
        self._dead.clear()
        self._num_unwanted = 0
        return Chunk(
            batch=batch,
            numbers=tuple(one.number for one in made),
            skips=skips,
            num_unwanted=num_unwanted,
            places=rows(moved),
            dead=dead,
            gave_up=len(made) < len(own) and not self._is_alone,
        )

    def _made(self, numbers: Sequence[int]) -> list[_Made]:
        """Return the examples of samples, as many as there are."""
        return [made for number in numbers if (made := self._next(number)) is not None]

    def _next(self, number: int) -> _Made | None:
        """Return the example of a sample: of the next one of its reader that can be used."""
        reader = number % self._num_readers
        num_vain = num_unwanted = 0
        for sample in self._samples[reader]:
            self._on_sample(sample)
            self._moved[reader] = sample.place
            if self._keep is not None and not self._keep(sample.raw.key, sample.raw.members):
                num_unwanted += 1
                self._num_unwanted += 1
                if num_unwanted == MAX_UNWANTED:
                    key = printable(sample.raw.key)
                    raise ValueError(f"{MAX_UNWANTED:,} samples in a row, to {key}, are none of those to be used")
                continue
            skips: list[Skip] = []
            example = parse(sample.raw, partial(self._example, sample.epoch), skips.append)
            if example is not None:
                return _Made(number=number, sample=sample, example=example)
            if not self._order.is_repeat(sample.place.turn):  # or it was told of
                self._skips.extend(skips)
            num_vain += 1
            if num_vain == MAX_VAIN:
                (last,) = skips
                raise ValueError(
                    f"{MAX_VAIN} samples in a row cannot be used, the last ({last.key} of {last.shard}): {last.reason}"
                )
        return None

    def _example(self, epoch: int, key: str, members: Mapping[str, bytes]) -> Any:
        return self._maker.example(self._maker.parse(key, members), epoch)

    def _collated(self, made: list[_Made]) -> BatchType | None:
        """Return the batch of the examples, or None after putting others in the place of bad ones."""
        try:
            return self._maker.collate([one.example for one in made])
        except Exception as error:
            raise_machine_fault(error)
            usable = [one for one in made if self._is_usable(one)]
            if len(usable) == len(made):
                raise
            kept = {one.number for one in usable}
            others = self._made([one.number for one in made if one.number not in kept])
            made[:] = sorted((*usable, *others), key=lambda one: one.number)
            return None

    def _is_usable(self, one: _Made) -> bool:
        collate = partial(self._maker.collate, [one.example])
        raw = one.sample.raw
        return attempt(collate, key=raw.key, shard=raw.shard, on_skip=self._skips.append) is not None

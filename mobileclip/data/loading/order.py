"""In what order a worker reads samples: shards dealt out or drawn, samples shuffled in a buffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import attrs

from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import RawSample, Shards, count_samples, expand_shards, read_shard
from mobileclip.data.skips import Skip

if TYPE_CHECKING:
    import numpy as np

Sampling = Literal["epoch", "resampled"]
SAMPLINGS: tuple[Sampling, ...] = ("epoch", "resampled")
T = TypeVar("T")

# Empty draws in a row, for every shard there is, after which no sample is to be expected.
_MAX_EMPTY_ROUNDS = 10


class ShardReader(Protocol):
    """Samples in parts that can be read one by one."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called, the shards."""
        ...

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the samples of one part, in order; what cannot be read is reported."""
        ...

    def count(self, limits: SampleLimits) -> int:
        """Return the number of samples of all parts."""
        ...


@attrs.frozen
class TarReader:
    """Reads tar shards.

    Args:
        names: their paths.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, shards: Shards) -> TarReader:
        """Return the reader of what patterns name.

        Raises:
            ValueError: if they name no shard, or none of the local ones exists.
        """
        names = expand_shards(shards)
        if not any("://" in name or name.startswith("pipe:") or Path(name).exists() for name in names):
            raise ValueError(f"none of the {len(names)} shards exists, the first is {names[0]}")
        return cls(tuple(names))

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the samples of one shard; see `read_shard`."""
        return read_shard(name, on_skip, limits)

    def count(self, limits: SampleLimits) -> int:
        """Return the number of samples; see `count_samples`."""
        return count_samples(self.names, limits)


@attrs.frozen(kw_only=True)
class Reader:
    """Who reads: one of the workers of one of the processes.

    Args:
        rank: of the process.
        world_size: number of processes.
        worker: number of the worker in its process.
        num_workers: of every process.
    """

    rank: int
    world_size: int
    worker: int
    num_workers: int


@attrs.frozen
class OrderedSample:
    """A sample in its turn.

    Args:
        raw: what the shard holds.
        place: shard and key, told apart from the same ones at another turn of the epoch; for `StreamPosition`.
        draw: which drawing of a shard it came with; empty where every shard comes once.
    """

    raw: RawSample
    place: tuple[str, str]
    draw: str


@attrs.frozen(kw_only=True)
class SampleOrder:
    """The order of an epoch, for every reader.

    `epoch`: the shuffled shards are dealt out to the processes and then to the workers; every sample comes once.
    `resampled`: every worker draws shards from all of them with replacement, without end.

    Args:
        reader: of all shards of the run.
        sampling: one of the two.
        seed: of all choices.
        shuffle: whether to shuffle the shards (`epoch`) and, within a buffer, the samples.
        shuffle_buffer: number of samples of the buffer.
        limits: of what is read of a sample.
    """

    reader: ShardReader
    sampling: Sampling
    seed: int
    shuffle: bool
    shuffle_buffer: int
    limits: SampleLimits = SAMPLE_LIMITS

    @property
    def shards(self) -> Sequence[str]:
        """What the shards are called."""
        return self.reader.names

    def samples(self, epoch: int, reader: Reader, on_skip: Callable[[Skip], None]) -> Iterator[OrderedSample]:
        """Yield the samples of one reader in their order.

        Args:
            epoch: its number.
            reader: whose samples.
            on_skip: called with what had to be left out.
        """
        samples = self._in_shards(epoch, reader, on_skip)
        if not self.shuffle:
            return samples
        rng = seeded_rng(self.seed, "samples", epoch, reader.rank, reader.worker)
        return shuffled(samples, self.shuffle_buffer, rng)

    def _in_shards(self, epoch: int, reader: Reader, on_skip: Callable[[Skip], None]) -> Iterator[OrderedSample]:
        num_empty = 0
        for draw, shard in self._shards(epoch, reader):
            if num_empty == _MAX_EMPTY_ROUNDS * len(self.shards):
                return
            num_empty += 1
            place = f"{draw} {shard}" if draw else shard
            seen: Counter[str] = Counter()
            for raw in self.reader.read(shard, on_skip, self.limits):
                # A broken shard may hold a key twice.
                key = f"{raw.key}#{seen[raw.key]}" if raw.key in seen else raw.key
                seen[raw.key] += 1
                num_empty = 0
                yield OrderedSample(raw, (place, key), draw)

    def _shards(self, epoch: int, reader: Reader) -> Iterator[tuple[str, str]]:
        if self.sampling == "resampled":
            rng = seeded_rng(self.seed, "resampled", epoch, reader.rank, reader.worker)
            for number in count():
                yield f"{reader.rank}.{reader.worker}.{number}", self.shards[random_index(rng, len(self.shards))]
        shards: Iterable[str] = self.shards
        if self.shuffle:
            shards = shuffled(self.shards, len(self.shards), seeded_rng(self.seed, "shards", epoch))
        for shard in list(shards)[reader.rank :: reader.world_size][reader.worker :: reader.num_workers]:
            yield "", shard


def shuffled(items: Iterable[T], buffer_size: int, rng: np.random.Generator) -> Iterator[T]:
    """Yield the items in random order, as far as a buffer of that size allows; all of them, once."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        place = random_index(rng, buffer_size)
        yield buffer[place]
        buffer[place] = item
    while buffer:
        place = random_index(rng, len(buffer))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()

"""Sample order in epochs: every sample once, also where shards are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip.data.loading.order import READERS_OF_A_SHARD, Order, Segment, divisors, shard_order

_GOLDEN = (math.sqrt(5) - 1) / 2


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
        object.__setattr__(self, "num_readers", next(one for one in divisors(self.most_readers) if one <= most))

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


@lru_cache(maxsize=2)
def _row(sizes: tuple[int, ...], names: tuple[int, ...] | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    shards = np.array(range(len(sizes)) if names is None else shard_order(len(sizes), names), dtype=np.int64)
    shards = shards[np.array(sizes, dtype=np.int64)[shards] > 0]
    return shards, np.cumsum(np.array(sizes, dtype=np.int64)[shards])


def _stride(num_readers: int) -> int:
    """Return a step that comes past all readers, and from one to others far away first."""
    return next(one for one in range(round(_GOLDEN * num_readers), num_readers + 1) if math.gcd(one, num_readers) == 1)

"""The order of a run's samples over the shards that exist, and positions in it to resume from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import attrs

from mobileclip.data.loading.endless_order import EndlessOrder
from mobileclip.data.loading.epoch_order import EpochOrder
from mobileclip.data.loading.order import Order, StreamPosition
from mobileclip.data.loading.shard_reader import ShardReader, find_dead
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.shards.counts import MOST_COUNTED, count_up_to
from mobileclip.data.shards.files import is_here
from mobileclip.data.skips import Skip
from mobileclip.processes import this_process
from mobileclip.storage import local_path, use_limits

# Of shards, whose sizes a position has a digest of each.
_NUM_GROUPS = 64


class DataOrder:
    """The order of a pipeline's samples, computed when it is first needed.

    Args:
        spec: the pipeline's choices.
        reader: of the shards.
    """

    def __init__(self, spec: PipelineSpec, reader: ShardReader) -> None:
        self.spec = spec
        self.reader = reader
        process = this_process()
        self.rank, self.world_size = process.rank, process.size
        self.dead: dict[int, tuple[Skip, ...]] = {}
        """The shards that are known to have no samples, by number, and what is said of each."""

    @property
    def batch_size(self) -> int:
        """Samples of a batch, of all processes together."""
        return self.spec.batch_size * self.world_size

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of samples of every shard, as it is said or counted."""
        with use_limits(self.spec.stores):
            return self.reader.sizes(self.spec.sample_limits)

    @cached_property
    def order(self) -> Order:
        """The order: which reader reads what."""
        spec = self.spec
        choices: dict[str, Any] = {"most_readers": spec.num_readers, "seed": spec.seed, "shuffle": spec.shuffle}
        order: Order
        if spec.sampling == "epoch":
            order = EpochOrder(names=self.reader.names, sizes=self.sizes, **choices)
        else:
            replacement = spec.sampling == "with_replacement"
            order = EndlessOrder(sources=self.reader.sources, weights=spec.weights, replacement=replacement, **choices)
            self._check_sources(order)
        order.check_processes(self.world_size)
        return order

    def with_dead(self, position: StreamPosition) -> StreamPosition:
        """Return a position that includes the shards known to be empty, here and by earlier runs.

        A store would answer once for each shard and process before the first batch, so what it lacks is found on the
        way.
        """
        if self.spec.sampling == "epoch":
            self.dead = self._dead_here | self._dead_of([n for n in position.found_dead if n not in self._dead_here])
        return attrs.evolve(position, found_dead=tuple(sorted(self.dead)))

    @cached_property
    def _dead_here(self) -> dict[int, tuple[Skip, ...]]:
        names = self.reader.names
        is_much = len(names) > MOST_COUNTED
        return {} if is_much else self._dead_of([number for number, name in enumerate(names) if is_here(name)])

    def _dead_of(self, numbers: Sequence[int]) -> dict[int, tuple[Skip, ...]]:
        with use_limits(self.spec.stores):
            return find_dead(self.reader, self.spec.sample_limits, numbers)

    @cached_property
    def digest(self) -> str:
        """Hash of the shards' names below their common folder, and of their sizes.

        With `epoch` these are the numbers of samples. Otherwise they are the bytes of the shards on this machine, in
        groups, so that a missing shard hides no more than its own.
        """
        folder = os.path.commonprefix(self.reader.names).rpartition("/")[0]  # noqa: RUF071 - they may be URLs
        names = [name[len(folder) :] for name in self.reader.names]
        if self.spec.sampling == "epoch":
            return _hash([names, self.sizes])
        sizes = list(map(_num_bytes, self.reader.names))
        groups = [sizes[group::_NUM_GROUPS] for group in range(min(_NUM_GROUPS, len(sizes)))]
        known = ["" if None in group else _hash(group)[:4] for group in groups]
        return f"{_hash([names, ()])}:{'.'.join(known)}" if any(known) else _hash([names, ()])

    def _check_sources(self, order: EndlessOrder) -> None:
        """Refuse sources with fewer samples than their weights have in a batch: it would be full of copies."""
        wanted = order.num_in_batch(self.batch_size) if len(self.spec.weights) > 1 else ()
        for source, (names, number) in enumerate(zip(order.sources, wanted, strict=False)):
            found = count_up_to(names, number, self.spec.sample_limits)
            if found is not None and found < number:
                raise ValueError(
                    f"source {source}, {self.spec.shards[source]}, has {found} samples, and its weight has {number} of "
                    f"every batch of {self.batch_size}: some would be copies. Give it a weight of at most "
                    f"{found / self.batch_size:.3g} of all, more samples, or a smaller batch_size"
                )

    def taken_up(self, position: StreamPosition) -> StreamPosition:
        """Return the position to resume from.

        Raises:
            ValueError: if it is of other data, or of another order.
        """
        order = self.order
        if position.data and not position.is_in(self.digest):
            raise ValueError(
                f"the position is one in other data: the names of the {len(self.reader.names)} shards, or their sizes, "
                "were others. Give the shards as they were, or start another run from its weights"
            )
        position = self.with_dead(position)
        if position.num_readers not in (0, order.num_readers):
            raise ValueError(
                f"the position is of {position.num_readers} readers, and the order has {order.num_readers}: "
                "num_readers, the shards or their sizes are others than they were"
            )
        if not position.places and order.step(position.first_batch, self.batch_size)[1].start:
            raise ValueError(
                f"the position behind batch {position.first_batch} does not say where the readers stand; take it from "
                "the checkpoint, or from the stream that came so far"
            )
        return position


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _num_bytes(name: str) -> int | None:
    """Return the size of a shard on this machine, None where it is not known."""
    try:
        # No `Path` of each: of 65,536 names they took longer than the answers.
        return os.stat(name if "://" not in name else local_path(name)).st_size if is_here(name) else None  # noqa: PTH116
    except OSError:
        return None

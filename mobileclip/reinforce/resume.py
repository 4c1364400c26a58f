"""Which units an earlier run has finished: found by listing the output and the source, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import attrs

from mobileclip import storage
from mobileclip.data import ImageTextSample, SkipReport
from mobileclip.data.shards.sidecars import shard_folder
from mobileclip.datasets import Unit
from mobileclip.datasets.sources.base import UNREACHABLE
from mobileclip.datasets.sources.shards import ShardUnit
from mobileclip.reinforce.manifest import Manifest, ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec


def refuse_own_input(spec: ReinforcementSpec, units: Sequence[Unit]) -> None:
    """Refuse an output whose shards would take the place of the source's.

    Raises:
        ValueError: if it is one.
    """
    place = cache(_place)
    for unit in units:
        if not isinstance(unit, ShardUnit) or storage.file_name(unit.path) != storage.file_name(unit.name):
            continue
        target = storage.join(spec.output, unit.name)
        # Links to folders are followed once a folder.
        same = (
            storage.is_same(unit.path, target)
            if not storage.is_remote(unit.path) and storage.local_path(unit.path).is_symlink()
            else place(shard_folder(unit.path)) == place(shard_folder(target))
        )
        if same:
            raise ValueError(f"the output would replace {unit.path}; choose another output directory")


@attrs.frozen(kw_only=True)
class UnreachedRows(Unit):
    """The rows of a finished shard whose images could not be reached.

    Args:
        unit: that the shard is made of.
        entry: of the shard.
    """

    unit: Unit
    entry: ShardEntry

    def fingerprint(self) -> str:
        """Return the whole unit's fingerprint."""
        return self.unit.fingerprint()

    def count(self) -> int:
        """Return how many rows there are."""
        return self.entry.skipped[UNREACHABLE]

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Refuse: which rows they are, the output says."""
        raise NotImplementedError


def pending_units(spec: ReinforcementSpec, units: Sequence[Unit], manifest: Manifest) -> list[Unit]:
    """Return the units that have no finished shard, or whose input has changed since, and what others lack.

    A store is asked to list each folder, a thousand files at a time, and never for one file alone. Of web servers,
    which list nothing, a changed input is not seen.

    Args:
        spec: the choices.
        units: of its source.
        manifest: of its output; a shard without an entry may be anything.

    Raises:
        OSError: if a store cannot be reached.
    """
    entered = [unit for unit in units if unit.name in manifest]
    sizes = storage.find_sizes(spec.output, [unit.name for unit in entered if manifest[unit.name].num_samples])
    whole = [
        unit
        for unit in entered
        if not manifest[unit.name].num_samples or sizes.get(unit.name) == manifest[unit.name].num_bytes
    ]
    assert spec.source is not None, "units are of a source"
    now = spec.source.fingerprints(whole)
    # Where the input is gone, what was made of it stays.
    changed = {name for name, fingerprint in now.items() if fingerprint != manifest[name].fingerprint}
    finished = {unit.name for unit in whole} - changed
    return [
        unit if unit.name not in finished else UnreachedRows(name=unit.name, unit=unit, entry=manifest[unit.name])
        for unit in units
        if unit.name not in finished or manifest[unit.name].is_pending
    ]


def _place(folder: str) -> str:
    return folder if storage.is_remote(folder) else str(storage.local_path(folder).resolve())

"""The number of samples of every shard, counted once and kept beside the shards."""

from __future__ import annotations

import time
from functools import partial

import attrs

from mobileclip import storage
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import Shards, count_samples, expand_shards
from mobileclip.data.shards.sidecars import read_sizes, shard_folder, write_sizes
from mobileclip.engines import Engine, FunctionWork, InlineEngine, Listener, SetAside
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

# So much work a killed job loses at most.
_SECONDS_BETWEEN_WRITES = 30.0


@attrs.frozen(kw_only=True)
class Counted:
    """The result of counting: shards, samples, and what could not be read.

    Args:
        num_shards: that could be counted, now or before.
        num_samples: in them.
        unreadable: shards that break off or cannot be read, with the reason.
    """

    num_shards: int
    num_samples: int
    unreadable: tuple[tuple[str, str], ...]


def count_shards(
    shards: Shards,
    *,
    again: bool = False,
    limits: SampleLimits = SAMPLE_LIMITS,
    engine: Engine | None = None,
    show_progress: bool = True,
) -> Counted:
    """Count the samples of shards and write `sizes.json` into each of their folders.

    What is written there already is not counted again, so a job that was stopped goes on. A shard that breaks off is
    left out; one whose store fails is tried again first.

    Args:
        shards: paths, URLs or brace patterns.
        again: count all of them anew.
        limits: of what is read.
        engine: who does the work; None for this process.
        show_progress: show a bar with the speed and the time left.

    Raises:
        ValueError: if there are none, or a `sizes.json` that is there cannot be read.
        OSError: if one cannot be written.
    """
    names = expand_shards(shards)
    folders = dict.fromkeys(map(shard_folder, names))
    sizes = {folder: {} if again else dict(read_sizes(folder) or {}) for folder in folders}
    uncounted = (name for name in dict.fromkeys(names) if storage.file_name(name) not in sizes[shard_folder(name)])
    missing = [_Shard(name=name) for name in uncounted]
    num_known = len(names) - len(missing)
    screen = console() if show_progress else None
    with Progress("counting", total=len(names), done=num_known, unit="shards", console=screen) as progress:
        counting = _Counting(sizes=sizes, progress=progress)
        work = FunctionWork(function=partial(_count, limits=limits))
        try:
            (engine or InlineEngine(device="cpu")).run(work, missing, counting)
        finally:
            counting.write()
    known = [sizes[shard_folder(name)].get(storage.file_name(name)) for name in names]
    counts = [count for count in known if count is not None]
    return Counted(num_shards=len(counts), num_samples=sum(counts), unreadable=tuple(counting.unreadable))


@attrs.frozen(kw_only=True)
class _Shard:
    """A shard to count; its name is its path."""

    name: str


def _count(shard: _Shard, limits: SampleLimits) -> int:
    """Return the number of samples, see `count_samples`."""
    return count_samples([shard.name], limits)


@attrs.define(kw_only=True, eq=False)
class _Counting(Listener[_Shard, int]):
    """Keeps the numbers, and writes them now and then.

    Args:
        sizes: number by file name, by folder.
        progress: what is shown.
    """

    sizes: dict[str, dict[str, int]]
    progress: Progress
    unreadable: list[tuple[str, str]] = attrs.field(factory=list)
    _changed: set[str] = attrs.field(factory=set)
    _written: float = attrs.field(factory=time.monotonic)

    def finished(self, unit: _Shard, entry: int) -> None:
        """Enter a number."""
        folder = shard_folder(unit.name)
        self.sizes[folder][storage.file_name(unit.name)] = entry
        self._changed.add(folder)
        self.progress.advance()
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    def gave_up(self, unit: _Shard, aside: SetAside) -> None:
        """Name a shard that has none."""
        logger.warning("%s", aside.reason)
        self.unreadable.append((unit.name, aside.reason))
        self.progress.advance()

    def write(self) -> None:
        """Write what was counted since the last time."""
        for folder in sorted(self._changed):
            write_sizes(folder, self.sizes[folder])
        self._changed.clear()
        self._written = time.monotonic()

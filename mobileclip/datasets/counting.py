"""Counts the samples of every shard once, and stores the counts in the folder of the shards."""

from __future__ import annotations

import time

import attrs

from mobileclip import storage
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import Shards, count_samples, expand_shards
from mobileclip.data.shards.sidecars import read_sizes, shard_folder, write_sizes
from mobileclip.datasets.sources.shards import ShardUnit
from mobileclip.engines import Engine, FunctionWork, InlineEngine, ResultCallback, SetAside
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

# A killed job loses at most this much work.
_SECONDS_BETWEEN_WRITES = 30.0


@attrs.frozen(kw_only=True)
class Counted:
    """The result of counting: numbers of shards and samples, and unreadable shards.

    Args:
        num_shards: number of shards with a count, from this run and earlier runs.
        num_samples: number of samples in the counted shards.
        unreadable: path and error message of every truncated or unreadable shard of this run.
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
    """Count the samples of shards and write `sizes.json` into every folder of shards.

    The function skips shards that already have a count, so a stopped job resumes. Truncated and unreadable shards get
    no count; the next run reads these shards again.

    Args:
        shards: paths, URLs or brace patterns of the shards.
        again: whether to recount shards that already have a count.
        limits: size limits for reading samples.
        engine: engine that counts the shards; None for this process.
        show_progress: whether to show a bar with speed and remaining time.

    Raises:
        ValueError: if there are no shards, or an existing `sizes.json` cannot be read.
        OSError: if a `sizes.json` cannot be written.
    """
    names = expand_shards(shards)
    sizes = {
        folder: {} if again else dict(read_sizes(folder) or {}) for folder in dict.fromkeys(map(shard_folder, names))
    }
    uncounted = (name for name in dict.fromkeys(names) if storage.file_name(name) not in sizes[shard_folder(name)])
    missing = [ShardUnit(name=name, path=name, sample_limits=limits) for name in uncounted]
    changed, unreadable, written = set[str](), list[tuple[str, str]](), time.monotonic()

    def write() -> None:
        nonlocal written
        for folder in sorted(changed):
            write_sizes(folder, sizes[folder])
        changed.clear()
        written = time.monotonic()

    def take(unit: ShardUnit, result: int | SetAside) -> None:
        if isinstance(result, SetAside):
            logger.warning("%s", result.reason)
            unreadable.append((unit.path, result.reason))
        else:
            folder = shard_folder(unit.path)
            sizes[folder][storage.file_name(unit.path)] = result
            changed.add(folder)
        progress.advance()
        if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            write()

    screen, num_known = console(shown=show_progress), len(names) - len(missing)
    with Progress("counting", total=len(names), done=num_known, unit="shards", console=screen) as progress:
        try:
            (engine or InlineEngine(device="cpu")).run(
                FunctionWork(function=_count), missing, ResultCallback[ShardUnit, int](take)
            )
        finally:
            write()
    known = [sizes[shard_folder(name)].get(storage.file_name(name)) for name in names]
    counts = [count for count in known if count is not None]
    return Counted(num_shards=len(counts), num_samples=sum(counts), unreadable=tuple(unreadable))


def _count(shard: ShardUnit) -> int:
    """Return the number of samples in a shard, see `count_samples`."""
    return count_samples([shard.path], shard.sample_limits)

"""The number of samples of every shard, counted once and kept beside the shards."""

from __future__ import annotations

import time
from functools import partial

import attrs

from mobileclip import storage
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.counts import read_sizes, shard_folder, write_sizes
from mobileclip.data.shards.files import Shards, count_shard, expand_shards
from mobileclip.data.workers import SHARD_SECONDS, workers
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

# So much work a killed job loses at most.
_SECONDS_BETWEEN_WRITES = 30.0


@attrs.frozen(kw_only=True)
class Counted:
    """What came out.

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
    num_workers: int = 1,
    again: bool = False,
    limits: SampleLimits = SAMPLE_LIMITS,
    show_progress: bool = True,
) -> Counted:
    """Count the samples of shards and write `sizes.json` into each of their folders.

    What is written there already is not counted again, so a job that was stopped goes on. A shard that breaks off is
    left out.

    Args:
        shards: paths, addresses or brace patterns.
        num_workers: processes that count.
        again: count all of them anew.
        limits: of what is read.
        show_progress: show a bar with the speed and the time left.

    Raises:
        ValueError: if there are none, or a `sizes.json` that is there cannot be read.
        OSError: if one cannot be written.
    """
    names = expand_shards(shards)
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(shard_folder(name), []).append(name)
    unreadable: list[tuple[str, str]] = []
    num_shards = num_samples = 0
    with (
        workers(num_workers, shard_seconds=SHARD_SECONDS) as share,
        Progress("counting", total=len(names), unit="shards", console=console() if show_progress else None) as progress,
    ):
        for folder, own in folders.items():
            sizes = {} if again else dict(read_sizes(folder) or {})
            missing = [name for name in own if storage.file_name(name) not in sizes]
            progress.advance(len(own) - len(missing), count=0)
            written = time.monotonic()
            counts = share(partial(count_shard, limits=limits), missing, doing="counting")
            for name, (count, problem) in zip(missing, counts, strict=True):
                if problem:
                    logger.warning("%s", problem)
                    unreadable.append((name, problem))
                else:
                    sizes[storage.file_name(name)] = count
                progress.advance()
                if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                    write_sizes(folder, sizes)
                    written = time.monotonic()
            if missing:
                write_sizes(folder, sizes)
            known = [sizes[name] for name in map(storage.file_name, own) if name in sizes]
            num_shards, num_samples = num_shards + len(known), num_samples + sum(known)
    return Counted(num_shards=num_shards, num_samples=num_samples, unreadable=tuple(unreadable))

"""The number of samples of shards: from `sizes.json` or the manifest beside them, or counted from their headers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from mobileclip import storage
from mobileclip.data.samples.sample import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import count_shard, is_here, runs_program
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import parse_json
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

SIZES = "sizes.json"
"""File beside shards: an object of their names and numbers of samples, as webdataset's users keep it."""
MANIFEST = "manifest.jsonl"
"""File beside reinforced shards: a line for every finished one."""
# A reinforced data set may have folders in folders, and says what it holds in the topmost one.
MOST_FOLDERS_ABOVE = 3
# Local shards that are counted without being asked to: a few minutes at most.
MOST_COUNTED = 1_000
_MAX_BYTES = 2**31
_MAX_SAMPLES = 2**36


def count_up_to(shards: Sequence[str], number: int, limits: SampleLimits = SAMPLE_LIMITS) -> int | None:
    """Return the number of samples of shards, or any that is not less than `number`; None where nothing says it.

    Args:
        shards: their paths or URLs.
        number: from which on nothing more is counted.
        limits: of what is read.

    Raises:
        ValueError: if a file that says it cannot be read.
    """
    found = 0
    for shard in shards:
        if found >= number:
            break
        try:
            found += shard_sizes((shard,), limits)[0]
        except UncountedError:
            return None
    return found


class UncountedError(ValueError):
    """The number of samples is unknown, and the shards are too many or too far away to be counted now."""


def shard_sizes(shards: Sequence[str], limits: SampleLimits = SAMPLE_LIMITS) -> tuple[int, ...]:
    """Return the number of samples of each shard.

    `sizes.json` beside the shards says it, or the manifest of a reinforcement; at most a thousand local shards without
    are counted by their headers.

    Args:
        shards: their paths or URLs.
        limits: of what is read.

    Raises:
        ValueError: if a file that says it cannot be read.
        UncountedError: if there is none, and they are too many or too far away.
    """
    known: dict[str, int] = {}
    said = cache(_said)
    for folder in dict.fromkeys(shard_folder(shard) for shard in shards if not runs_program(shard)):
        above = next(filter(said, folders_above(folder)), None)
        if above is not None:
            known |= {storage.join(above, name): size for name, size in said(above).items()}
    unknown = [shard for shard in dict.fromkeys(shards) if _path(shard) not in known]
    if unknown:
        _check_countable(unknown)
        if len(unknown) > 1:
            logger.info("counting the samples of %d shards; `mobileclip data count` keeps the numbers", len(unknown))
        # One that breaks off still has a sample to be read, and to be told of.
        known |= {_path(shard): count_shard(shard, limits)[0] or 1 for shard in unknown}
    return tuple(known[_path(shard)] for shard in shards)


def read_sizes(folder: str | os.PathLike[str]) -> Mapping[str, int] | None:
    """Return the counts of a folder's `sizes.json` by the name of the shard; None without such a file.

    Raises:
        ValueError: if it cannot be read, or holds something else.
    """
    path = storage.join(os.fspath(folder), SIZES)
    try:
        content = storage.read_if_there(path, limit=_MAX_BYTES)
        if content is None:
            return None
        sizes = parse_json(content.decode())
    except (ValueError, OSError) as error:
        raise_machine_fault(error)
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(sizes, dict) or not all(map(_is_size, sizes.values())):
        raise ValueError(f"{path} must be an object of shard names and numbers of samples")
    return sizes


def write_sizes(folder: str | os.PathLike[str], sizes: Mapping[str, int]) -> str:
    """Write `sizes.json` into a folder and return its path; the old one is there until the new one is complete."""
    path = storage.join(os.fspath(folder), SIZES)
    storage.write_text(path, json.dumps(dict(sorted(sizes.items())), indent=0) + "\n")
    return path


def shard_folder(shard: str) -> str:
    """Return the folder, or the URL of it, that a shard lies in."""
    return shard.rpartition("/")[0] or os.curdir


def folders_above(folder: str, most: int = MOST_FOLDERS_ABOVE) -> Iterator[str]:
    """Yield a folder, the one that it lies in, and so on, as far as that is in its name, and `most` of them at most."""
    yield folder
    above = folder.rpartition("/")[0]
    if not above and not folder.startswith("/") and folder != os.curdir:
        above = os.curdir
    if above and most and storage.is_remote(above) == storage.is_remote(folder):
        yield from folders_above(above, most - 1)


def _said(folder: str) -> Mapping[str, int]:
    sizes = read_sizes(folder)
    if sizes is not None:
        return sizes
    return _in_manifest(storage.join(folder, MANIFEST))


def _in_manifest(path: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    *lines, _ = (storage.read_if_there(path, limit=_MAX_BYTES) or b"").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line.decode())
        except ValueError as error:
            raise ValueError(f"line {number} of {path} cannot be read: {error}") from None
        if isinstance(entry, dict) and isinstance(entry.get("shard"), str) and _is_size(entry.get("num_samples")):
            sizes[entry["shard"]] = entry["num_samples"]
    return sizes


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SAMPLES


def _check_countable(shards: Sequence[str]) -> None:
    if len(shards) > MOST_COUNTED or not all(map(is_here, shards)):
        raise UncountedError(
            f"nothing says how many samples {_some(shards)} hold, which an epoch is made of: count them once with "
            f"`mobileclip data count SHARDS`, which writes {SIZES} beside them; or choose sampling `endless`, which "
            "need not know"
        )


def _some(shards: Sequence[str]) -> str:
    first = storage.printable(storage.without_secrets(shards[0]))
    return first if len(shards) == 1 else f"{first} and {len(shards) - 1:,} other shards"


def _path(shard: str) -> str:
    return storage.join(shard_folder(shard), storage.file_name(shard)) if not runs_program(shard) else shard

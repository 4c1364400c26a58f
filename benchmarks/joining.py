"""What it takes to match the samples of very many shards with their images: seconds, memory, bytes on the disk.

Command:   python -m benchmarks joining --num-keys 10000000
Hardware:  1 CPU core, about 1 GiB of memory; 250 bytes on the disk for every key
Time:      some minutes for ten million keys
Result:    a table

The shards are not there: names and places are drawn, and written as reading shards writes them. Every sample has an
image, but for a tenth; the images lie in another order. Reading shards and writing joined ones is not measured.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import numpy.typing as npt
from attrs import validators

from benchmarks.harness import Bench, Case, Row, Value, peak
from mobileclip.data.buckets import scratch_folder
from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.datasets.joining.image_index import ImageIndex
from mobileclip.datasets.joining.matching import Matches, read_matches
from mobileclip.datasets.joining.placeholders import find_placeholders
from mobileclip.datasets.joining.records import NAME, NAMES, PLACE, PLACES, AboutShard, write_records
from mobileclip.progress import Progress

_MISSING_SHARE = 0.1


@attrs.frozen(kw_only=True)
class JoiningBenchSpec(Bench):
    """What is matched.

    Args:
        num_keys: samples, and images.
        shard_keys: of them in a shard, on both sides.
        folder: in which the records and the scratch files lie; None for the temporary directory.
    """

    num_keys: int = attrs.field(default=10_000_000, validator=validators.gt(0))
    shard_keys: int = attrs.field(default=10_000, validator=validators.gt(0))
    folder: Path | None = None

    smallest: ClassVar[Mapping[str, object]] = {"num_keys": 30_000, "shard_keys": 1000}

    def cases(self) -> Iterator[Case]:
        """Yield all of it."""
        yield Case(labels={"keys": f"{self.num_keys:,}"}, measure=partial(measure, self))


def measure(spec: JoiningBenchSpec) -> Iterator[Row]:
    """Yield a row for each step: seconds, bytes on the disk, and this process's memory over what it had before."""
    with tempfile.TemporaryDirectory(dir=spec.folder) as name:
        folder = Path(name)
        before, started = peak("cpu"), time.perf_counter()

        def step(title: str, scratch_bytes: int = 0) -> Row:
            nonlocal started
            seconds, started = time.perf_counter() - started, time.perf_counter()
            numbers = {"index": num_bytes / 1e9, "scratch": scratch_bytes / 1e9}
            values = {"time": Value(number=seconds, unit="s")}
            values |= {name: Value(number=number, unit="GB") for name, number in numbers.items()}
            values["peak memory"] = Value(number=(peak("cpu") - before) / 1e6, unit="MB")
            return Row(case={"step": title}, values=values)

        index, names = _write(spec, folder)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield step("records of both sides written")
        with scratch_folder(folder) as scratch:
            progress = Progress("matching", total=None, console=None)
            matches = Matches(index, names, np.ones(len(names), bool), scratch=scratch, progress=progress)
            yield step("matched", matches.num_scratch_bytes)
            extents = matches.write(scratch / "matches")
            num_matched_bytes = (scratch / "matches").stat().st_size
            matches.close()
            num_matches = sum(len(read_matches(scratch / "matches", extent)) for extent in extents.values())
            assert num_matches == matches.counts.asked == matches.counts.used_keys, (
                "each sample has an image of its own"
            )
            yield step("handed out shard by shard", num_matched_bytes)
            found = find_placeholders(index, 10, scratch)
            assert len(found) == 1, "one picture stands under a thousandth of the keys"
            yield step("placeholders")


def _write(spec: JoiningBenchSpec, folder: Path) -> tuple[ImageIndex, list[AboutShard]]:
    """Write the records of both sides."""
    stride = _stride(spec.num_keys)
    about = AboutShard(shard="", by="key", fingerprint="")
    images, names = [], []
    for first in range(0, spec.num_keys, spec.shard_keys):
        asked = np.arange(first, min(first + spec.shard_keys, spec.num_keys), dtype=np.uint64)
        some = np.empty(len(asked), NAME)
        some["high"], some["low"] = _mixed(asked), asked
        names.append(write_records(folder, NAMES, attrs.evolve(about, shard=f"reinforced/{first}.tar"), some))
        there = asked * np.uint64(stride) % np.uint64(spec.num_keys)
        is_missing = there < _MISSING_SHARE * spec.num_keys
        there = np.where(is_missing, there + np.uint64(spec.num_keys), there)
        places = np.zeros(len(there), PLACE)
        places["high"], places["low"], places["size"] = _mixed(there), there, 50_000
        places["start"] = 51_200 * np.arange(len(there))
        places["sha256"] = np.where(there % np.uint64(1000) == 0, np.uint64(1), _mixed(there))
        images.append(write_records(folder, PLACES, attrs.evolve(about, shard=f"images/{first}.tar"), places))
    return ImageIndex(folder=folder, by="key", shards=tuple(images), limits=SAMPLE_LIMITS), names


def _stride(count: int) -> int:
    """Return a number whose multiples, modulo the count, are all numbers below it, each once and far from the last."""
    stride = max(1, int(0.618 * count))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return numbers that are spread as hashes are, different ones for different ones (the finaliser of SplitMix64)."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

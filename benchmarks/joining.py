"""What it takes to match the samples of very many shards with their images: seconds, memory, bytes on the disk.

Command:   python -m benchmarks.joining --num-keys 10000000
Hardware:  1 CPU core, about 1 GiB of memory; 250 bytes on the disk for every key
Time:      some minutes for ten million keys
Result:    a table

The shards are not there: names and places are drawn, and written as reading shards writes them. Every sample has an
image, but for a tenth; the images lie in another order. Reading shards and writing joined ones is not measured.
"""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from attrs import validators

from benchmarks.command_line import empty_table, main
from mobileclip.data.buckets import scratch_folder
from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.datasets.joining.image_index import ImageIndex
from mobileclip.datasets.joining.matching import Matches, read_matches
from mobileclip.datasets.joining.placeholders import find_placeholders
from mobileclip.datasets.joining.records import NAME, NAMES, PLACE, PLACES, AboutShard, write_records
from mobileclip.progress import Progress
from mobileclip.terminal import print_table

_MISSING_SHARE = 0.1


@attrs.frozen(kw_only=True)
class JoiningBenchSpec:
    """What is matched.

    Args:
        num_keys: samples, and images.
        shard_keys: of them in a shard, on both sides.
        folder: in which the records and the scratch files lie; None for the temporary directory.
    """

    num_keys: int = attrs.field(default=10_000_000, validator=validators.gt(0))
    shard_keys: int = attrs.field(default=10_000, validator=validators.gt(0))
    folder: Path | None = None


@attrs.frozen(kw_only=True)
class Step:
    """One step.

    Args:
        name: of it.
        seconds: that it took.
        num_bytes: of the index on the disk at its end.
        scratch_bytes: written to files that are removed during this step or the next.
        peak_bytes: of this process's memory until then, over what it had when it began.
    """

    name: str
    seconds: float
    num_bytes: int
    scratch_bytes: int
    peak_bytes: int


def run(spec: JoiningBenchSpec) -> tuple[Step, ...]:
    """Measure, print a table and return its rows."""
    with tempfile.TemporaryDirectory(dir=spec.folder) as folder:
        steps = tuple(_steps(spec, Path(folder)))
    table = empty_table(("step", "seconds", "index (GB)", "scratch (GB)", "peak memory (MB)"), texts=("step",))
    for step in steps:
        numbers = f"{step.num_bytes / 1e9:.2f}", f"{step.scratch_bytes / 1e9:.2f}", f"{step.peak_bytes / 1e6:.0f}"
        table.add_row(step.name, f"{step.seconds:.1f}", *numbers)
    print_table(table)
    return steps


def _steps(spec: JoiningBenchSpec, folder: Path) -> Iterator[Step]:
    before, started = _peak(), time.perf_counter()

    def step(name: str, scratch_bytes: int = 0) -> Step:
        nonlocal started
        seconds, started = time.perf_counter() - started, time.perf_counter()
        peak = _peak() - before
        return Step(name=name, seconds=seconds, num_bytes=num_bytes, scratch_bytes=scratch_bytes, peak_bytes=peak)

    index, names = _write(spec, folder)
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield step("records of both sides written")
    with scratch_folder(folder) as scratch:
        matches = Matches(
            index,
            names,
            np.ones(len(names), bool),
            scratch=scratch,
            progress=Progress("matching", total=None, console=None),
        )
        yield step("matched", matches.num_scratch_bytes)
        extents = matches.write(scratch / "matches")
        num_matched_bytes = (scratch / "matches").stat().st_size
        matches.close()
        num_matches = sum(len(read_matches(scratch / "matches", extent)) for extent in extents.values())
        assert num_matches == matches.counts.asked == matches.counts.used_keys, "each sample has an image of its own"
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


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(JoiningBenchSpec, run, __doc__)

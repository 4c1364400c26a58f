"""The test pictures in the layout in which the field shares data sets, written once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from examples.quickstart.emoji import DrawnDataset
from examples.quickstart.emoji.benchmark import write_benchmarks
from examples.quickstart.emoji.teachers import PROMPTS
from mobileclip.evaluation import Benchmark, open_benchmark
from mobileclip.storage import write_text

_CARD = "written.json"


def as_benchmarks(dataset: DrawnDataset, folder: Path) -> dict[str, Benchmark]:
    """Return the test splits as data sets of classes and of captions, by the names of their folders.

    They are written where they are missing, not whole, or made of other pictures, names or prompts.

    Args:
        dataset: what `build_dataset` returned.
        folder: where they go; what is there already is replaced where it is not they.
    """
    made_of = _fingerprint(dataset)
    found = _written(folder, made_of)
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)
        found = {_folder(one): one for one in write_benchmarks(dataset, folder, templates=PROMPTS)}
        write_text(folder / _CARD, json.dumps({"made_of": made_of, "folders": list(found)}))
    return found


def classes_of(split: str, benchmarks: Mapping[str, Benchmark]) -> Benchmark:
    """Return the data set of classes that a test split was written to."""
    return benchmarks[f"wds_emoji-{split}_test"]


def _written(folder: Path, made_of: str) -> dict[str, Benchmark] | None:
    """Return what an earlier run wrote, or None where that is not all there."""
    try:
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        if card["made_of"] != made_of:
            return None
        found = {name: open_benchmark(folder / name) for name in card["folders"]}
    except (OSError, ValueError, KeyError):
        return None
    return found if all(Path(shard).exists() for one in found.values() for shard in one.shards) else None


def _folder(benchmark: Benchmark) -> str:
    return Path(benchmark.shards[0]).parents[1].name


def _fingerprint(dataset: DrawnDataset) -> str:
    digest = blake2b(json.dumps([PROMPTS, *((one.name, one.class_names) for one in dataset.tests)]).encode())
    for split in dataset.tests:
        for shard in split.shards:
            digest.update(shard.read_bytes())
    return digest.hexdigest()

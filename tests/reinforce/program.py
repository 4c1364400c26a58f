"""A reinforcement as a program of its own, for tests that end it.

Run as `python -m tests.reinforce.program SPEC ENGINE WORKERS`, where ENGINE is inline, local or ray.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mobileclip.data import AugmentationSpec
from mobileclip.engines import Engine, InlineEngine, LocalEngine, RayEngine
from mobileclip.reinforce import ReinforcementSpec, reinforce
from mobileclip.serialization import from_json, to_json


def write_spec(
    folder: Path,
    *,
    num_shards: int,
    num_samples: int,
    broken: tuple[int, int] | None = None,
    output: Path | str | None = None,
) -> None:
    """Write what is reinforced, teachers, and `spec.json`; one sample, by its shard and place, may be unreadable."""
    from tests.reinforce.conftest import plain_shards, small_teacher_files

    spec = ReinforcementSpec(
        source=plain_shards(folder / "plain", num_shards, num_samples, broken=broken),
        output=output or folder / "reinforced",
        teachers=small_teacher_files(folder),
        augmentation=AugmentationSpec(size=64, reference_size=64, scale=(0.3, 1.0)),
        num_augmentations=2,
        seed=7,
        layout="npz",
        batch_size=2,
    )
    (folder / "spec.json").write_text(to_json(spec), encoding="utf-8")


def engine_of(name: str, num_workers: int) -> Engine:
    """Return an engine of one thread a worker."""
    if name == "inline":
        return InlineEngine(device="cpu", num_threads=1)
    if name == "local":
        return LocalEngine(num_workers=num_workers, num_threads=1)
    return RayEngine(max_workers=num_workers)


def main(written: str, engine: str, num_workers: str) -> None:
    """Reinforce."""
    torch.set_num_threads(1)
    spec = from_json(Path(written).read_text(encoding="utf-8"), ReinforcementSpec)
    engine_used = engine_of(engine, int(num_workers))
    reinforce(spec, engine=engine_used, show_progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

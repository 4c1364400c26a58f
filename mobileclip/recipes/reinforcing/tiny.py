"""A small world to try a recipe in: models with random weights and a few drawn scenes, made on the spot."""

from __future__ import annotations

from pathlib import Path

import attrs

from mobileclip.data import write_shards
from mobileclip.recipes.tiny.models import write_tiny_models
from mobileclip.recipes.tiny.scenes import scene_samples
from mobileclip.reinforce import OpenClipTeacher, ReinforcementSpec, TeacherSpec
from mobileclip.reinforce.captioners import NucleusSpec

NUM_SAMPLES = 48
SAMPLES_PER_SHARD = 12


def write_scenes(folder: Path) -> str:
    """Write shards of drawn scenes, unless they are there, and return their pattern."""
    last = NUM_SAMPLES // SAMPLES_PER_SHARD - 1
    if not (folder / f"{last:08d}.tar").exists():
        write_shards(folder, scene_samples(NUM_SAMPLES, seed=0), samples_per_shard=SAMPLES_PER_SHARD)
    return str(folder / f"{{{0:08d}..{last:08d}}}.tar")


def shrink(spec: ReinforcementSpec, folder: Path) -> ReinforcementSpec:
    """Return the same choices with small models, written to `folder`, in place of the large ones."""
    tiny = write_tiny_models(folder)
    teachers: tuple[TeacherSpec, ...] = tuple(
        attrs.evolve(small, logit_scale=large.logit_scale)
        for small, large in zip(tiny.teachers, spec.teachers, strict=True)
        if isinstance(large, OpenClipTeacher)
    )
    captioner = spec.captioner
    if isinstance(captioner, NucleusSpec):
        captioner = attrs.evolve(tiny.captioner, num_captions=captioner.num_captions, top_p=captioner.top_p)
    # Random teachers recognise nothing that they could lose.
    return attrs.evolve(spec, teachers=teachers, captioner=captioner, num_compared=0)

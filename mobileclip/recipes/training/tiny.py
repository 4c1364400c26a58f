"""A small world to try a training recipe in: its model one block deep, and drawn scenes reinforced on the spot."""

from __future__ import annotations

from pathlib import Path

import attrs

from mobileclip.data import (
    ColumnPipelineSpec,
    ReinforcedPipelineSpec,
    count_samples,
    datacompdr_augmentation,
    expand_shards,
    find_card,
    read_card,
)
from mobileclip.datasets import RowOptions, as_source, shards_of
from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec, MCiSpec, MCtSpec, TextTransformerSpec, ViTSpec
from mobileclip.processes import this_process
from mobileclip.recipes.reinforcing.tiny import shrink, write_scenes
from mobileclip.recipes.tiny.few_samples import first_samples
from mobileclip.reinforce import CocaCaptioner, OpenClipTeacher, ReinforcementSpec, reinforce
from mobileclip.training import CosineSchedule, RunSpec, TrainingSpec, follow_card

NUM_STEPS = 2
BATCH_SIZE = 8


def tiny_run(run: RunSpec, folder: Path, rows: RowOptions = RowOptions()) -> RunSpec:  # noqa: B008  frozen
    """Return the run made small: two steps of eight samples with a model of full width and one block a stage.

    Args:
        run: the recipe's choices; of its data, the first samples are taken. Weights to start from need the whole model.
        folder: where scenes, teachers and the reinforced data go, once, for a run without data; and copies of samples.
        rows: how rows of lists and tables are read.

    Raises:
        ValueError: if there is data, and its first shards are missing or hold too little.
    """
    given = run.data.shards
    if given and not run.data.reinforced:
        place = first_samples(as_source(given, rows=rows), folder / "samples")
        data = attrs.evolve(run.data, shards=shards_of((place,)), batch_size=BATCH_SIZE)
    else:
        data = _first_samples(run.data) if given else _drawn(run.data, folder)
    model = run.model if run.initial_weights is not None else shallow(run.model)
    data = attrs.evolve(data, num_workers=0)
    tiny = attrs.evolve(run, model=model, data=data, training=two_steps(run.training))
    return follow_card(tiny, run)[0]


def two_steps(training: TrainingSpec) -> TrainingSpec:
    """Return how a run trains, for two steps that are logged."""
    schedule = CosineSchedule(
        peak=training.schedule.peak, final=training.schedule.final, warmup_steps=1, total_steps=NUM_STEPS
    )
    return attrs.evolve(training, schedule=schedule, precision="float32", log_every_steps=1)


def _first_samples(data: ReinforcedPipelineSpec) -> ReinforcedPipelineSpec:
    """Return a shard for every process, in batches that they fill."""
    num_processes = this_process().size
    shards = expand_shards(data.shards)[:num_processes]
    num_samples = count_samples(shards)
    batch_size = min(BATCH_SIZE, num_samples) // num_processes * num_processes
    if not batch_size:
        raise ValueError(f"{', '.join(shards)}: {num_samples} samples are too few to try a run on")
    return attrs.evolve(data, shards=shards, batch_size=batch_size, num_samples=num_samples)


def _drawn(data: ReinforcedPipelineSpec, folder: Path) -> ReinforcedPipelineSpec:
    """Return drawn scenes, reinforced on the spot with two teachers, of which a run with one takes the last."""
    reinforced = folder / "reinforced"
    if find_card(reinforced) is None or not list(reinforced.glob("*.tar")):
        reinforce(_reinforcement(folder))
    shards = tuple(str(path) for path in sorted(reinforced.glob("*.tar")))
    # The captioner's set has a name of its own.
    small = attrs.evolve(data, shards=shards, batch_size=BATCH_SIZE, caption_sets=None)
    if isinstance(small, ColumnPipelineSpec):
        dims = read_card(reinforced).teacher_dims
        return attrs.evolve(small, teacher_columns=(sum(dims[:-1]), sum(dims)))
    return small


def shallow(model: DualEncoderSpec) -> DualEncoderSpec:
    """Return the model with one block a stage, its widths and inputs as they are."""
    text = model.text
    if isinstance(text, (TextTransformerSpec, MCtSpec)):
        text = attrs.evolve(text, depth=min(text.depth, 1))
    return attrs.evolve(model, image=shallow_image(model.image), text=text)


def shallow_image(image: ImageEncoderSpec) -> ImageEncoderSpec:
    """Return an image encoder with one block a stage; another's than the library's as it is."""
    if isinstance(image, MCiSpec):
        return attrs.evolve(image, stages=tuple(attrs.evolve(stage, depth=1) for stage in image.stages))
    return attrs.evolve(image, depth=1) if isinstance(image, ViTSpec) else image


def _reinforcement(folder: Path) -> ReinforcementSpec:
    spec = ReinforcementSpec(
        source=write_scenes(folder / "scenes"),
        output=str(folder / "reinforced"),
        teachers=(OpenClipTeacher(model="ViT-L-14"), OpenClipTeacher(model="ViT-L-14", pretrained="datacomp_xl")),
        captioner=CocaCaptioner(num_captions=5),
        augmentation=datacompdr_augmentation(224),
        num_augmentations=2,
    )
    return shrink(spec, folder / "models")

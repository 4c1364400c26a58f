"""A small world to try a training recipe in: its model one block deep, and drawn scenes reinforced on the spot."""

from __future__ import annotations

from pathlib import Path

import attrs
from reinforcing.tiny import shrink, write_scenes

from mobileclip.data import datacompdr_augmentation, find_card, read_card
from mobileclip.encoders import DualEncoderSpec, MCiSpec, MCtSpec, TextTransformerSpec, ViTSpec
from mobileclip.losses import DistillingLossSpec
from mobileclip.reinforce import CocaCaptioner, OpenClipTeacher, ReinforcementSpec, reinforce
from mobileclip.training import CosineSchedule, RunSpec

NUM_STEPS = 2
BATCH_SIZE = 8


def tiny_run(run: RunSpec, folder: Path) -> RunSpec:
    """Return the run made small: two steps of eight scenes with a model of full width and one block a stage.

    Args:
        run: the recipe's choices.
        folder: where scenes, teachers and the reinforced data go, once.
    """
    reinforced = folder / "reinforced"
    if find_card(reinforced) is None or not list(reinforced.glob("*.tar")):
        reinforce(_reinforcement(folder))
    card = read_card(reinforced)
    training = attrs.evolve(
        run.training,
        schedule=CosineSchedule(
            peak=run.training.schedule.peak, final=run.training.schedule.final, warmup_steps=1, total_steps=NUM_STEPS
        ),
        precision="float32",
        log_every_steps=1,
    )
    columns = None
    if isinstance(training.loss, DistillingLossSpec):
        dims, scales = card.teacher_dims, card.teacher_logit_scales
        if run.data.teacher_columns is not None:
            columns, dims, scales = (sum(dims[:-1]), sum(dims)), dims[-1:], scales[-1:]
        loss = attrs.evolve(training.loss, teacher_dims=dims, teacher_logit_scales=scales)
        training = attrs.evolve(training, loss=loss)
    shards = tuple(str(path) for path in sorted(reinforced.glob("*.tar")))
    data = attrs.evolve(run.data, shards=shards, batch_size=BATCH_SIZE, num_workers=0, teacher_columns=columns)
    return attrs.evolve(run, model=shallow(run.model), data=data, training=training)


def shallow(model: DualEncoderSpec) -> DualEncoderSpec:
    """Return the model with one block a stage, its widths and inputs as they are."""
    image, text = model.image, model.text
    if isinstance(image, MCiSpec):
        image = attrs.evolve(image, stages=tuple(attrs.evolve(stage, depth=1) for stage in image.stages))
    if isinstance(image, ViTSpec):
        image = attrs.evolve(image, depth=1)
    if isinstance(text, (TextTransformerSpec, MCtSpec)):
        text = attrs.evolve(text, depth=1)
    return attrs.evolve(model, image=image, text=text)


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

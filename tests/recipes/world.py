"""A small world to test fine-tuning in: a model that learned to describe drawn scenes, and shapes it has never seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import torch

from mobileclip.data import ImageTextSample, ReinforcedPipelineSpec, crop_augmentation, write_shards
from mobileclip.encoders import AttentionSpec, DualEncoderSpec, MCiSpec, MCtSpec, StageSpec, save_model
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.recipes.tiny.scenes import SHAPES, draw_shape, jpeg, scene_samples
from mobileclip.recipes.tiny.shapes import OUTLINES
from mobileclip.storage import atomic_folder
from mobileclip.terminal import console
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec, train

TEMPLATE = "a drawing of a {}"

_SIZE = (120, 90)
_BATCH = 64


@attrs.frozen(kw_only=True)
class World:
    """The size of the synthetic data that `--tiny` fine-tunes on.

    Args:
        num_scenes: that the model learns.
        num_tests: scenes to test it on, and pictures of old shapes.
        num_new: pictures of each new shape.
        num_steps: of the model's own training.
        batch_size: of the same.
    """

    num_scenes: int = 2000
    num_tests: int = 200
    num_new: int = 40
    num_steps: int = 400
    batch_size: int = _BATCH


def tiny_model() -> DualEncoderSpec:
    """Return a MobileCLIP for pictures of 64 pixels and short texts."""
    return DualEncoderSpec(
        image=MCiSpec(
            stages=(
                StageSpec(dim=16, depth=1),
                StageSpec(dim=32, depth=1),
                StageSpec(dim=64, depth=2, mixer=AttentionSpec()),
            ),
            embedding_dim=64,
            input=ImageInput(size=64),
        ),
        text=MCtSpec(
            width=64, num_heads=2, depth=1, embedding_dim=64, input=TextInput(context_length=24, vocab_size=16384)
        ),
    )


def write_model(folder: Path, world: World) -> Path:
    """Write a model that learned scenes, unless it is there, and return its path."""
    path = folder / "pretrained.safetensors"
    if path.exists():
        return path
    model_spec = tiny_model()
    shards = write_shards(folder / "scenes", _scene_samples(world.num_scenes, seed=0), samples_per_shard=500)
    pipeline = ReinforcedPipelineSpec(
        shards=tuple(map(str, shards)),
        batch_size=world.batch_size,
        image=model_spec.image.input,
        text=model_spec.text.input,
        reinforced=False,
        augmentation=crop_augmentation(model_spec.image.input.size),
        num_samples=world.num_scenes,
    )
    training = TrainingSpec(
        loss=ContrastiveLossSpec(),
        schedule=CosineSchedule(peak=3e-3, warmup_steps=min(20, world.num_steps // 4), total_steps=world.num_steps),
        optimizer=AdamWSpec(weight_decay=0.1),
        max_gradient_norm=1.0,
        ema_decay=None,
    )
    torch.manual_seed(0)
    model = model_spec.build()
    trained = train(
        training,
        model=model,
        batches=pipeline.build(),
        output=folder / "pretraining",
        title="learning scenes",
        console=console(),
    ).model
    save_model(trained, path)
    return path


def write_new_shapes(folder: Path, world: World) -> Path:
    """Write a folder of pictures for every new shape, unless it is there, and return the folder of folders."""
    return write_shapes(folder / "new-shapes", tuple(OUTLINES), world.num_new, seed=2)


def write_old_tasks(folder: Path, world: World) -> tuple[str, ...]:
    """Write pictures of the old shapes and scenes that the model has not seen; return where they are."""
    shapes = write_shapes(folder / "old-shapes", SHAPES, math.ceil(world.num_tests / len(SHAPES)), seed=3)
    held_out = folder / "held-out-scenes"
    if not (held_out / "00000000.tar").exists():
        write_shards(held_out, _scene_samples(world.num_tests, seed=1), samples_per_shard=world.num_tests)
    return str(shapes), str(held_out)


def _scene_samples(count: int, seed: int) -> list[ImageTextSample]:
    """Return scenes with all that can be said of them as captions."""
    return [
        ImageTextSample(key=one.key[-6:], captions=(*one.captions, *one.syn_captions["syn_text"]), image=one.image)
        for one in scene_samples(count, seed, size=_SIZE)
    ]


def write_shapes(folder: Path, shapes: Sequence[str], count: int, seed: int) -> Path:
    """Write a folder of pictures for every shape, all at once or not at all."""
    if folder.exists():
        return folder
    rng = np.random.default_rng(seed)
    with atomic_folder(folder) as partial:
        for shape in shapes:
            place = partial / shape
            place.mkdir()
            for index in range(count):
                (place / f"{index:04d}.jpg").write_bytes(jpeg(draw_shape(shape, rng, *_SIZE)))
    return folder

"""The choices that the published runs share; a recipe states what is its own.

Source: MobileCLIP (arXiv 2311.17049), table 12; MobileCLIP2 (arXiv 2508.20691); the released training scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from mobileclip.data import ColumnPipelineSpec, RangeAugmentSpec, ReinforcedPipelineSpec
from mobileclip.encoders import DualEncoderSpec, MCiSpec, TextEncoderSpec, TextTransformerSpec, ViTSpec
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from mobileclip.losses import LossSpec, ReinforcedLossSpec
from mobileclip.training import AdamWSpec, ConstantCosineSchedule, CosineSchedule, RunSpec, TrainingSpec

STEPS_BETWEEN_LOOKS = 2_000
STUDENT_AUGMENTATION = RangeAugmentSpec(target_psnr=(40.0, 20.0))


Chosen = TypeVar("Chosen")


def mobileclip_run(
    model: DualEncoderSpec,
    *,
    distill_weight: float = 1.0,
    batch_size: int = 65_536,
    total_steps: int = 200_000,
    warmup_steps: int = 2_000,
    max_gradient_norm: float | None = None,
    range_augment: RangeAugmentSpec | None = STUDENT_AUGMENTATION,
) -> RunSpec:
    """Return a run on DataCompDR as in table 12.

    Args:
        model: the student.
        distill_weight: `w` of Eq. 2; the contrastive term has what is left of 1.
        batch_size: samples of a step, of all processes together.
        total_steps: length of the run.
        warmup_steps: steps to the peak of the learning rate.
        max_gradient_norm: gradients are scaled down to this norm; none leaves them as they are.
        range_augment: what changes the student's images beyond what the teachers saw.
    """
    return RunSpec(
        model=model,
        data=ReinforcedPipelineSpec(
            shards=(),
            batch_size=batch_size,
            image=model.image.input,
            text=model.text.input,
            sampling="endless",  # `EndlessOrder` of data/loading/endless_order.py: the samples need not be counted
            num_readers=2_048,
            num_workers=8,
        ),
        training=TrainingSpec(
            loss=ReinforcedLossSpec(
                teacher_dims=(768, 768),
                teacher_logit_scales=(100.0, 100.0),
                contrastive_weight=1 - distill_weight,
                distill_weight=distill_weight,
            ),
            schedule=CosineSchedule(peak=1e-3, final=1e-6, warmup_steps=warmup_steps, total_steps=total_steps),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.95, weight_decay=0.2),
            max_gradient_norm=max_gradient_norm,
            ema_decay=0.9995,
            precision="bfloat16",
            recompute_activations=True,
            range_augment=range_augment,
            checkpoint_every_steps=STEPS_BETWEEN_LOOKS,
            evaluate_every_steps=STEPS_BETWEEN_LOOKS,
        ),
    )


def long_training(run: RunSpec) -> RunSpec:
    """Return the run with 300k steps at a constant rate and 300k along a cosine."""
    schedule = run.training.schedule
    longer = ConstantCosineSchedule(
        peak=schedule.peak,
        final=schedule.final,
        warmup_steps=schedule.warmup_steps,
        constant_steps=300_000,
        total_steps=600_000,
    )
    return attrs.evolve(run, training=attrs.evolve(run.training, schedule=longer))


def mobileclip2_run(model: DualEncoderSpec, **choices: Any) -> RunSpec:
    """Return a run on DFNDR: two DFN teachers at logit scales 70 and 60, and a clipped gradient.

    Args:
        model: the student.
        choices: as those of `mobileclip_run`.
    """
    run = mobileclip_run(model, max_gradient_norm=1.0, **choices)
    return with_loss(run, ReinforcedLossSpec(teacher_dims=(768, 768), teacher_logit_scales=(70.0, 60.0)))


def plain_vit_b16() -> ViTSpec:
    """Return the image tower of open_clip's ViT-B/16."""
    return ViTSpec(
        stem="patch", class_position=True, norm_before=True, initialization="open_clip", input=ImageInput(size=224)
    )


def vit_b16_12m_run(text: TextEncoderSpec | None = None, *, total_steps: int = 30_000) -> RunSpec:
    """Return a run of the ablations: open_clip's ViT-B/16 on DataCompDR-12M, both teachers and both captions, w = 1.

    Warm-up and the clipped gradient are those of the released script, as the paper has them for the large runs alone.

    Args:
        text: the text encoder; by default the 12-layer one with a causal mask.
        total_steps: length of the run: 30,000 in tables 2, 3a and 5, 45,000 in tables 4a and 4b.
    """
    return mobileclip_run(
        DualEncoderSpec(image=plain_vit_b16(), text=TextTransformerSpec(causal=True) if text is None else text),
        batch_size=8_192,
        total_steps=total_steps,
        warmup_steps=1_000,
        max_gradient_norm=1.0,
        range_augment=None,
    )


def with_drop_path(model: DualEncoderSpec, rate: float) -> DualEncoderSpec:
    """Return the model with stochastic depth in its image tower.

    Args:
        model: with an image tower of a published kind.
        rate: probability that a branch of the last block is left out for a sample in training.
    """
    assert isinstance(model.image, MCiSpec | ViTSpec), "the published towers take it"
    return attrs.evolve(model, image=attrs.evolve(model.image, drop_path=rate))


def with_data(run: RunSpec, **changes: Any) -> RunSpec:
    """Return the run with other choices of its data."""
    return attrs.evolve(run, data=attrs.evolve(run.data, **changes))


def with_loss(run: RunSpec, loss: LossSpec) -> RunSpec:
    """Return the run with another loss."""
    return attrs.evolve(run, training=attrs.evolve(run.training, loss=loss))


def with_one_teacher(run: RunSpec, number: int) -> RunSpec:
    """Return a run of several teachers that distils from one of them, by its columns of what is stored.

    Args:
        run: on stored embeddings.
        number: of the teacher, from 0.
    """
    loss = _teachers(run)
    first, dim = sum(loss.teacher_dims[:number]), loss.teacher_dims[number]
    alone = attrs.evolve(loss, teacher_dims=(dim,), teacher_logit_scales=(loss.teacher_logit_scales[number],))
    data = ColumnPipelineSpec.of(run.data, teacher_columns=(first, first + dim))
    return with_loss(attrs.evolve(run, data=data), alone)


def with_scales(run: RunSpec, factor: float) -> RunSpec:
    """Return the run with the teachers' logit scales, the inverse of their temperatures, multiplied by a factor."""
    loss = _teachers(run)
    scales = tuple(factor * one for one in loss.teacher_logit_scales)
    return with_loss(run, attrs.evolve(loss, teacher_logit_scales=scales, tuned_scales=True))


def _teachers(run: RunSpec) -> ReinforcedLossSpec:
    assert isinstance(run.training.loss, ReinforcedLossSpec), "the published runs distil"
    return run.training.loss


def as_released(run: RunSpec) -> RunSpec:
    """Return a run with the released scripts' choices where the paper differs or says nothing.

    Source: the scripts of apple/ml-mobileclip, and open_clip, which they train with.
    """
    image, optimizer = run.model.image, run.training.optimizer
    assert isinstance(optimizer, AdamWSpec), "the published runs have it"
    # Its class token has one dimension, which leaves it out, and "vit" in its name, which decides eps.
    plain = isinstance(image, ViTSpec) and image.initialization == "open_clip"
    optimizer = attrs.evolve(
        optimizer,
        eps=1e-6 if plain else 1e-8,
        decayed=("weights", "positions", "layer_scales", *(() if plain else ("class_tokens",))),
    )
    training = attrs.evolve(
        run.training,
        schedule=attrs.evolve(run.training.schedule, final=0.0, warmup_steps=1_000),
        optimizer=optimizer,
        max_gradient_norm=1.0,
        min_logit_scale=1.0,
        ema_decay=None,
        precision="float16",
        range_augment=None,
    )
    pixels = attrs.evolve(image.input, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD)
    image = attrs.evolve(image, input=pixels, projection_bias=not plain)
    data = attrs.evolve(run.data, image=pixels, sampling="with_replacement", shuffle_buffer=5_000)
    return attrs.evolve(run, model=attrs.evolve(run.model, image=image), data=data, training=training)


def as_released_b(run: RunSpec) -> RunSpec:
    """Return a run with the choices of the script for B on DataCompDR-1B, which trains open_clip's plain ViT-B/16."""
    image = attrs.evolve(plain_vit_b16(), input=run.model.image.input)
    return as_released(attrs.evolve(run, model=attrs.evolve(run.model, image=image)))


def as_released_dfndr2b(run: RunSpec) -> RunSpec:
    """Return a run with the choices of the script for DFNDR-2B, which takes one set of synthetic captions alone."""
    return with_data(as_released(run), caption_sets="^syn_text_dfn_mscoco38k$")


def titled(title: str, recipe: Callable[[], Chosen]) -> Callable[[], Chosen]:
    """Return a row of a recipe that `--help` calls by a title, as it does a function by its docstring."""

    def row() -> Chosen:
        return recipe()

    row.__doc__ = title
    return row

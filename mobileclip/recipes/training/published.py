"""The choices that the published runs share; a recipe states what is its own.

Source: MobileCLIP (arXiv 2311.17049), table 12; MobileCLIP2 (arXiv 2508.20691); the released training scripts.
"""

from __future__ import annotations

from typing import Any

import attrs

from mobileclip.data import RangeAugmentSpec, ReinforcedPipelineSpec
from mobileclip.encoders import DualEncoderSpec, MCiSpec, ViTSpec
from mobileclip.losses import LossSpec, ReinforcedLossSpec
from mobileclip.training import AdamWSpec, ConstantCosineSchedule, CosineSchedule, RunSpec, TrainingSpec

STEPS_BETWEEN_LOOKS = 2_000
STUDENT_AUGMENTATION = RangeAugmentSpec(target_psnr=(40.0, 20.0))


def mobileclip_run(
    model: DualEncoderSpec,
    *,
    distill_weight: float = 1.0,
    batch_size: int = 65_536,
    total_steps: int = 200_000,
    range_augment: RangeAugmentSpec | None = STUDENT_AUGMENTATION,
) -> RunSpec:
    """Return a run on DataCompDR as in table 12.

    Args:
        model: the student.
        distill_weight: `w` of Eq. 2; the contrastive term has what is left of 1.
        batch_size: samples of a step, of all processes together.
        total_steps: length of the run.
        range_augment: what changes the student's images beyond what the teachers saw.
    """
    return RunSpec(
        model=model,
        data=ReinforcedPipelineSpec(
            shards=(),
            batch_size=batch_size,
            image=model.image.input,
            text=model.text.input,
            sampling="resampled",
            num_workers=8,
        ),
        training=TrainingSpec(
            loss=ReinforcedLossSpec(
                teacher_dims=(768, 768),
                teacher_logit_scales=(100.0, 100.0),
                contrastive_weight=1 - distill_weight,
                distill_weight=distill_weight,
            ),
            schedule=CosineSchedule(peak=1e-3, final=1e-6, warmup_steps=2_000, total_steps=total_steps),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.95, weight_decay=0.2),
            ema_decay=0.9995,
            precision="bfloat16",
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


def mobileclip2_run(model: DualEncoderSpec, *, warmup_steps: int = 2_000, batch_size: int = 65_536) -> RunSpec:
    """Return a run on DFNDR-2B: two DFN teachers at logit scales 70 and 60, and a clipped gradient.

    Args:
        model: the student.
        warmup_steps: steps to the peak of the learning rate.
        batch_size: samples of a step, of all processes together.
    """
    run = mobileclip_run(model, batch_size=batch_size)
    training = attrs.evolve(
        run.training,
        loss=ReinforcedLossSpec(teacher_dims=(768, 768), teacher_logit_scales=(70.0, 60.0)),
        schedule=CosineSchedule(peak=1e-3, final=1e-6, warmup_steps=warmup_steps, total_steps=200_000),
        max_gradient_norm=1.0,
    )
    return attrs.evolve(run, training=training)


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

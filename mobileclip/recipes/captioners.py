"""The choices of the published captioners.

Source: MobileCLIP2 (arXiv 2508.20691) and the names of its captioners' files, such as dfn2b_s13b and s12m_context128,
for data, samples seen and contexts; open_clip's coca_ViT-L-14, its laion2B-s13B-b90k and its page of fine-tuning for
the rest.
"""

from __future__ import annotations

import attrs

from mobileclip.data import ReinforcedPipelineSpec, crop_augmentation
from mobileclip.encoders import CoCaSpec, TextTransformerSpec, ViTSpec
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput
from mobileclip.losses import CaptionLossSpec
from mobileclip.training import AdamWSpec, CosineSchedule, Memory, RunSpec, TrainingSpec

NUM_SEEN, BATCH_SIZE = 13_000_000_000, 90_112
NUM_FINETUNED, FINETUNING_BATCH = 12_000_000, 128
"""Pairs that a published captioner sees, first of DFN-2B and then of a set of captions; and batches."""


def coca_vit_l14(context: int = 77) -> CoCaSpec:
    """Return open_clip's coca_ViT-L-14, which the published captioners are.

    Args:
        context: positions of a text, the class token's included: 77, 128 or 256.
    """
    image = ImageInput(size=224, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD)
    return CoCaSpec(
        image=ViTSpec(
            input=image,
            width=1024,
            depth=24,
            num_heads=16,
            embedding_dim=768,
            patch_size=14,
            stem="patch",
            class_position=True,
            norm_before=True,
            initialization="open_clip",
        ),
        text=TextTransformerSpec(
            input=TextInput(context_length=context - 1),
            width=768,
            depth=12,
            num_heads=12,
            embedding_dim=768,
            causal=True,
        ),
        decoder_depth=12,
        decoder_heads=12,
    )


def coca_run(model: CoCaSpec, *, batch_size: int = BATCH_SIZE, num_seen: int = NUM_SEEN) -> RunSpec:
    """Return a run on image-text pairs, such as DFN-2B's.

    Args:
        model: the captioner.
        batch_size: pairs of a step, of all processes together.
        num_seen: pairs of the whole run.
    """
    total_steps = num_seen // batch_size
    return RunSpec(
        model=model,
        data=attrs.evolve(_data(model, batch_size), num_readers=2_048),
        training=TrainingSpec(
            loss=CaptionLossSpec(),
            schedule=CosineSchedule(peak=1e-3, final=0.0, warmup_steps=2_000 / 144_264, total_steps=total_steps),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.2),
            max_gradient_norm=1.0,
            ema_decay=None,
            precision="bfloat16",
            memory=Memory(micro_batch=64),
            checkpoint_every_steps=1_000,
            evaluate_every_steps=2_000,
        ),
    )


def finetuning_run(context: int = 77, *, total_steps: int = NUM_FINETUNED // FINETUNING_BATCH) -> RunSpec:
    """Return a run on a small set of captions, from a captioner that knows pairs.

    Args:
        context: positions of a text; those of the checkpoint are interpolated.
        total_steps: length of the run.
    """
    model = coca_vit_l14(context)
    return RunSpec(
        model=model,
        data=_data(model, FINETUNING_BATCH),
        training=TrainingSpec(
            loss=CaptionLossSpec(contrastive_weight=0.0, caption_weight=1.0),
            schedule=CosineSchedule(peak=1e-5, final=0.0, warmup_steps=1_000 / 93_750, total_steps=total_steps),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.1),
            ema_decay=None,
            precision="bfloat16",
            memory=Memory(micro_batch=32),
            checkpoint_every_steps=1_000,
            evaluate_every_steps=2_000,
        ),
    )


def _data(model: CoCaSpec, batch_size: int) -> ReinforcedPipelineSpec:
    return ReinforcedPipelineSpec(
        shards=(),
        batch_size=batch_size,
        image=model.image.input,
        text=model.text.input,
        reinforced=False,
        sampling="endless",  # the samples need not be counted
        num_workers=8,
        augmentation=crop_augmentation(model.image.input.size),
    )

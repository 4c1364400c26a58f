"""The common options of the published runs; each recipe states the options that differ.

The recipes are files of the folder `recipes` at the root of the repository, such as `recipes/train_s2.py`.

Source: MobileCLIP (arXiv 2311.17049), table 12; MobileCLIP2 (arXiv 2508.20691); the released training scripts. For
captioners: MobileCLIP2 and the file names of the published captioners, such as dfn2b_s13b and s12m_context128, for
data, samples seen and contexts; open_clip's coca_ViT-L-14, the tag laion2B-s13B-b90k and open_clip's fine-tuning page
for all other options. For classifiers: FastViT (arXiv 2303.14189) and the script in apple/ml-fastvit; MobileCLIP, table
11, for MCi.
"""

from __future__ import annotations

from typing import Any

import attrs

from mobileclip.data import (
    MixingSpec,
    RandomErasingSpec,
    RangeAugmentSpec,
    ReinforcedPipelineSpec,
    crop_augmentation,
    datacompdr_augmentation,
    imagenet_augmentation,
)
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import (
    ClassifierSpec,
    CoCaSpec,
    DualEncoderSpec,
    MCiSpec,
    TextEncoderSpec,
    TextTransformerSpec,
    ViTSpec,
)
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput
from mobileclip.losses import CaptionLossSpec, LossSpec, ReinforcedLossSpec
from mobileclip.reinforce import CocaCaptioner, OpenClipTeacher, ReinforcementSpec
from mobileclip.training import (
    AdamWSpec,
    ConstantCosineSchedule,
    CosineSchedule,
    CrossEntropySpec,
    Memory,
    RunSpec,
    TrainingSpec,
)

CHECK_EVERY_STEPS = 2_000
STUDENT_AUGMENTATION = RangeAugmentSpec(target_psnr=(40.0, 20.0))
NUM_SEEN, CAPTIONER_BATCH = 13_000_000_000, 90_112
NUM_FINETUNED, FINETUNING_BATCH = 12_000_000, 128
"""Number of pairs and batch size for fine-tuning a published captioner, after the training on DFN-2B."""
NUM_IMAGES, IMAGENET_BATCH = 1_281_167, 1_024


def mobileclip_run(
    model: DualEncoderSpec,
    *,
    peak: float = 1e-3,
    distill_weight: float = 1.0,
    batch_size: int = 65_536,
    total_steps: int = 200_000,
    warmup_steps: int = 2_000,
    max_gradient_norm: float | None = None,
    range_augment: RangeAugmentSpec | None = STUDENT_AUGMENTATION,
    memory: Memory = Memory(micro_batch=512),  # noqa: B008  frozen
) -> RunSpec:
    """Return a run on DataCompDR with the options of MobileCLIP's table 12.

    Args:
        model: the student.
        peak: peak learning rate.
        distill_weight: weight of the distillation term, `w` of Eq. 2; the contrastive term has weight `1 - w`.
        batch_size: number of samples per step, over all processes.
        total_steps: number of steps of the run.
        warmup_steps: number of warm-up steps; if the length of the run changes later, the fraction of warm-up steps
            stays.
        max_gradient_norm: maximum norm of the gradient, for gradient clipping; None for no clipping.
        range_augment: additional augmentation of the student's images; None for none.
        memory: memory options; the micro-batch size is the release's batch size per GPU on 128 GPUs, so that batch
            norms see equally many samples on fewer GPUs.
    """
    return RunSpec(
        model=model,
        data=ReinforcedPipelineSpec(
            shards=(),
            batch_size=batch_size,
            image=model.image.input,
            text=model.text.input,
            sampling="endless",  # `ShuffledShards` of data/loading/order.py does not need the number of samples
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
            schedule=CosineSchedule(
                peak=peak, final=1e-6, warmup_steps=warmup_steps / total_steps, total_steps=total_steps
            ),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.95, weight_decay=0.2),
            max_gradient_norm=max_gradient_norm,
            ema_decay=0.9995,
            precision="bfloat16",
            memory=memory,
            range_augment=range_augment,
            checkpoint_every_steps=CHECK_EVERY_STEPS,
            evaluate_every_steps=CHECK_EVERY_STEPS,
        ),
    )


def long_training(run: RunSpec) -> RunSpec:
    """Return the run with 600k steps: 300k steps at a constant learning rate, then 300k steps along a cosine."""
    schedule = run.training.schedule
    longer = ConstantCosineSchedule(
        peak=schedule.peak,
        final=schedule.final,
        warmup_steps=2_000 / 600_000,
        constant_steps=0.5,
        total_steps=600_000,
    )
    return attrs.evolve(run, training=attrs.evolve(run.training, schedule=longer))


def mobileclip2_run(model: DualEncoderSpec, **choices: Any) -> RunSpec:
    """Return a run on DFNDR, with two DFN teachers at logit scales 70 and 60, and with gradient clipping.

    Args:
        model: the student.
        choices: other arguments of `mobileclip_run`.
    """
    run = mobileclip_run(model, max_gradient_norm=1.0, **choices)
    return with_loss(run, ReinforcedLossSpec(teacher_dims=(768, 768), teacher_logit_scales=(70.0, 60.0)))


def datacompdr_reinforcement(num_augmentations: int) -> ReinforcementSpec:
    """Return the reinforcement of DataComp with five synthetic captions and two ViT-L/14 teachers.

    Args:
        num_augmentations: number of stored augmentations per image: 30 for DataCompDR-12M, 10 for DataCompDR-1B.
    """
    return ReinforcementSpec(
        teachers=tuple(
            OpenClipTeacher(model="ViT-L-14", pretrained=pretrained, logit_scale=100.0, precision="bfloat16")
            for pretrained in ("openai", "datacomp_xl_s13b_b90k")
        ),
        captioner=CocaCaptioner(num_captions=5, top_p=0.9),
        augmentation=datacompdr_augmentation(224),
        num_augmentations=num_augmentations,
        layout="pth.gz",
    )


def plain_vit_b16() -> ViTSpec:
    """Return the image tower of open_clip's ViT-B/16."""
    return ViTSpec(
        stem="patch", class_position=True, norm_before=True, initialization="open_clip", input=ImageInput(size=224)
    )


def vit_b16_12m_run(text: TextEncoderSpec | None = None, *, total_steps: int = 30_000) -> RunSpec:
    """Return a run of the ablations: open_clip's ViT-B/16 on DataCompDR-12M, both teachers and caption types, w = 1.

    Warm-up and gradient clipping are from Apple's script; the MobileCLIP paper states these options only for large
    runs.

    Args:
        text: the text encoder; by default the encoder with 12 layers and a causal mask.
        total_steps: length of the run: 30,000 steps in tables 2, 3a and 5; 45,000 steps in tables 4a and 4b.
    """
    return mobileclip_run(
        DualEncoderSpec(image=plain_vit_b16(), text=TextTransformerSpec(causal=True) if text is None else text),
        batch_size=8_192,
        total_steps=total_steps,
        warmup_steps=1_000,
        max_gradient_norm=1.0,
        range_augment=None,
        memory=Memory(micro_batch=256),
    )


def with_drop_path(model: DualEncoderSpec, rate: float) -> DualEncoderSpec:
    """Return the model with stochastic depth in its image tower.

    Args:
        model: model with an MCi or a ViT as image tower.
        rate: drop probability of the last block's branches in training; the probability increases linearly over the
            blocks, from 0.
    """
    assert isinstance(model.image, MCiSpec | ViTSpec), "the published towers have stochastic depth"
    return attrs.evolve(model, image=attrs.evolve(model.image, drop_path=rate))


def with_data(run: RunSpec, **changes: Any) -> RunSpec:
    """Return the run with changed data options."""
    return attrs.evolve(run, data=attrs.evolve(run.data, **changes))


def with_loss(run: RunSpec, loss: LossSpec) -> RunSpec:
    """Return the run with a different loss."""
    return attrs.evolve(run, training=attrs.evolve(run.training, loss=loss))


def with_one_teacher(run: RunSpec, number: int) -> RunSpec:
    """Return a run that distils from only one of the stored teachers, with the columns of this teacher's embeddings.

    Args:
        run: run with stored embeddings.
        number: index of the teacher, from 0.
    """
    loss = _teachers(run)
    first, dim = sum(loss.teacher_dims[:number]), loss.teacher_dims[number]
    alone = attrs.evolve(loss, teacher_dims=(dim,), teacher_logit_scales=(loss.teacher_logit_scales[number],))
    data = attrs.evolve(run.data, teacher_columns=(first, first + dim))
    return with_loss(attrs.evolve(run, data=data), alone)


def with_scales(run: RunSpec, factor: float) -> RunSpec:
    """Return the run with the teachers' logit scales (inverse temperatures) multiplied by a factor."""
    loss = _teachers(run)
    scales = tuple(factor * one for one in loss.teacher_logit_scales)
    return with_loss(run, attrs.evolve(loss, teacher_logit_scales=scales, tuned_scales=True))


def _teachers(run: RunSpec) -> ReinforcedLossSpec:
    assert isinstance(run.training.loss, ReinforcedLossSpec), "the published runs distil"
    return run.training.loss


def as_released(run: RunSpec) -> RunSpec:
    """Return a run with the options of Apple's scripts instead of the options of the paper.

    The recipes follow table 12 of MobileCLIP and differ from the scripts in six options (recipe; script):
    warm-up (2,000 steps; 1,000 steps), gradient clipping (none; norm 1), moving average (0.9995; none), last learning
    rate (1e-6; 0), RangeAugment (PSNR 40 to 20; none) and precision (bfloat16; float16). The recipes follow the
    published weights in projection bias, pixel statistics and interpolation. No paper states AdamW's `eps` or the
    weight decay of positions, class tokens and layer scales.

    Source: the scripts of apple/ml-mobileclip, and open_clip.
    """
    image, optimizer = run.model.image, run.training.optimizer
    assert isinstance(optimizer, AdamWSpec), "the published runs use AdamW"
    # Apple's script exempts a class token with one dimension from weight decay, and selects eps by "vit" in the name.
    plain = isinstance(image, ViTSpec) and image.initialization == "open_clip"
    optimizer = attrs.evolve(
        optimizer,
        eps=1e-6 if plain else 1e-8,
        decayed=("weights", "positions", "layer_scales", *(() if plain else ("class_tokens",))),
    )
    training = attrs.evolve(
        run.training,
        schedule=attrs.evolve(run.training.schedule, final=0.0, warmup_steps=1_000 / run.training.schedule.total_steps),
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
    """Return a run with the options of the script for B on DataCompDR-1B (open_clip's plain ViT-B/16)."""
    image = attrs.evolve(plain_vit_b16(), input=run.model.image.input)
    return as_released(attrs.evolve(run, model=attrs.evolve(run.model, image=image)))


def as_released_dfndr2b(run: RunSpec) -> RunSpec:
    """Return a run with the options of the script for DFNDR-2B (one set of synthetic captions)."""
    return with_data(as_released(run), caption_sets="^syn_text_dfn_mscoco38k$")


def coca_vit_l14(context: int = 77) -> CoCaSpec:
    """Return open_clip's coca_ViT-L-14, the architecture of the published captioners.

    Args:
        context: number of text positions, including the class token: 77, 128 or 256.
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


def coca_run(model: CoCaSpec) -> RunSpec:
    """Return a run that trains a captioner on image-text pairs, such as DFN-2B."""
    run = _captioner_run(
        model,
        batch_size=CAPTIONER_BATCH,
        schedule=CosineSchedule(
            peak=1e-3, final=0.0, warmup_steps=2_000 / 144_264, total_steps=NUM_SEEN // CAPTIONER_BATCH
        ),
        weight_decay=0.2,
        loss=CaptionLossSpec(),
        max_gradient_norm=1.0,
        memory=Memory(micro_batch=64),
    )
    return with_data(run, num_readers=2_048)


def finetuning_run(context: int = 77, *, total_steps: int = NUM_FINETUNED // FINETUNING_BATCH) -> RunSpec:
    """Return a run that fine-tunes a trained captioner on a small set of captions.

    Args:
        context: number of text positions; the run interpolates the checkpoint's position embeddings.
        total_steps: number of steps of the run.
    """
    return _captioner_run(
        coca_vit_l14(context),
        batch_size=FINETUNING_BATCH,
        schedule=CosineSchedule(peak=1e-5, final=0.0, warmup_steps=1_000 / 93_750, total_steps=total_steps),
        weight_decay=0.1,
        loss=CaptionLossSpec(contrastive_weight=0.0, caption_weight=1.0),
        memory=Memory(micro_batch=32),
    )


def _captioner_run(model: CoCaSpec, *, batch_size: int, weight_decay: float, **training: Any) -> RunSpec:
    return RunSpec(
        model=model,
        data=ReinforcedPipelineSpec(
            shards=(),
            batch_size=batch_size,
            image=model.image.input,
            text=model.text.input,
            reinforced=False,
            sampling="endless",  # does not need the number of samples
            num_workers=8,
            augmentation=crop_augmentation(model.image.input.size),
        ),
        training=TrainingSpec(
            optimizer=AdamWSpec(beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=weight_decay),
            ema_decay=None,
            precision="bfloat16",
            checkpoint_every_steps=1_000,
            evaluate_every_steps=CHECK_EVERY_STEPS,
            **training,
        ),
    )


def imagenet_run(image: MCiSpec, *, drop_path: float, epochs: int = 300, warmup_epochs: int = 5) -> RunSpec:
    """Return a run on ImageNet-1k with FastViT's recipe.

    Args:
        image: image encoder of the classifier.
        drop_path: drop probability of the last block's branches in training; the probability increases linearly over
            the blocks, from 0.
        epochs: number of epochs, without the ten epochs at the final learning rate that FastViT's script appends.
        warmup_epochs: number of warm-up epochs; the learning rate starts near 0 (in FastViT's script, at 1e-6).
    """
    model = ClassifierSpec(image=attrs.evolve(image.without_projection(), drop_path=drop_path), num_classes=1_000)
    steps_per_epoch = NUM_IMAGES // IMAGENET_BATCH
    return RunSpec(
        model=model,
        data=LabelledPipelineSpec(
            shards=(),
            batch_size=IMAGENET_BATCH,
            image=image.input,
            augmentation=imagenet_augmentation(image.input.size),
            erasing=RandomErasingSpec(probability=0.25),
            num_workers=8,
        ),
        training=TrainingSpec(
            loss=CrossEntropySpec(label_smoothing=0.1, mixing=MixingSpec(mixup_alpha=0.2, cutmix_alpha=1.0)),
            schedule=CosineSchedule(
                peak=1e-3,
                final=1e-5,
                warmup_steps=warmup_epochs / epochs,
                total_steps=epochs * steps_per_epoch,
            ),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.999, weight_decay=0.05),
            ema_decay=0.9995,
            precision="bfloat16",
            checkpoint_every_steps=steps_per_epoch,
            evaluate_every_steps=steps_per_epoch,
        ),
    )

"""The choices that classifiers on ImageNet-1k share.

Source: FastViT (arXiv 2303.14189) and its released training script, apple/ml-fastvit; MobileCLIP (arXiv 2311.17049),
table 11, for MCi trained so.
"""

from __future__ import annotations

import attrs

from mobileclip.data import MixingSpec, RandomErasingSpec, imagenet_augmentation
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import ClassifierSpec, MCiSpec
from mobileclip.training import AdamWSpec, CosineSchedule, CrossEntropySpec, RunSpec, TrainingSpec

NUM_IMAGES = 1_281_167
BATCH_SIZE = 1_024
STEPS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE


def imagenet_run(image: MCiSpec, *, drop_path: float, epochs: int = 300, warmup_epochs: int = 5) -> RunSpec:
    """Return a run on ImageNet-1k by FastViT's recipe.

    Args:
        image: the encoder, whose pooled features are classified.
        drop_path: of its last block.
        epochs: length of the run, without the ten epochs at the final rate that the script appends.
        warmup_epochs: epochs to the peak of the learning rate, which the script starts at 1e-6 and we near 0.
    """
    model = ClassifierSpec(image=attrs.evolve(image.without_projection(), drop_path=drop_path), num_classes=1_000)
    size = image.input.size
    return RunSpec(
        model=model,
        data=LabelledPipelineSpec(
            shards=(),
            batch_size=BATCH_SIZE,
            image=image.input,
            augmentation=imagenet_augmentation(size),
            erasing=RandomErasingSpec(probability=0.25),
            num_workers=8,
        ),
        training=TrainingSpec(
            loss=CrossEntropySpec(label_smoothing=0.1, mixing=MixingSpec(mixup_alpha=0.2, cutmix_alpha=1.0)),
            schedule=CosineSchedule(
                peak=1e-3,
                final=1e-5,
                warmup_steps=warmup_epochs / epochs,
                total_steps=epochs * STEPS_PER_EPOCH,
            ),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.999, weight_decay=0.05),
            ema_decay=0.9995,
            precision="bfloat16",
            checkpoint_every_steps=STEPS_PER_EPOCH,
            evaluate_every_steps=STEPS_PER_EPOCH,
        ),
    )

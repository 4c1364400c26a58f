"""A small run of a classifier: coloured patterns whose number is their class."""

from __future__ import annotations

import torch

from mobileclip.data import LabelledBatch, MixingSpec
from mobileclip.encoders import Classifier, ClassifierSpec, MCiSpec, StageSpec, ViTSpec
from mobileclip.inputs import ImageInput
from mobileclip.training import AdamWSpec, CrossEntropySpec, TrainingSpec
from tests.training import runs
from tests.training.runs import noisy

NUM_CLASSES = 8
IMAGE = MCiSpec(stages=(StageSpec(dim=16, depth=2),), embedding_dim=24, input=ImageInput(size=16), drop_path=0.2)
MODEL = ClassifierSpec(image=IMAGE.without_projection(), num_classes=NUM_CLASSES)
# Without batch norm and drop path, which see one piece at a time.
TRANSFORMER = ClassifierSpec(
    image=ViTSpec(width=32, depth=2, num_heads=2, patch_size=4, stem="patch", input=ImageInput(size=16)),
    num_classes=NUM_CLASSES,
)
LOSS = CrossEntropySpec(label_smoothing=0.1, mixing=MixingSpec())


def training_spec(total_steps: int = 8, *, peak: float = 3e-3, **changes) -> TrainingSpec:
    own = {"loss": LOSS, "optimizer": AdamWSpec(weight_decay=0.05)}
    return runs.training_spec(total_steps, peak=peak, **(own | changes))


def new_classifier(spec: ClassifierSpec = MODEL) -> Classifier:
    torch.manual_seed(0)
    return spec.build()


def class_batch(step: int, size: int = 8) -> LabelledBatch:
    """Pictures of fixed patterns plus noise, every step its own."""
    patterns = torch.rand(NUM_CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    own = torch.Generator().manual_seed(100 + step)
    label = torch.randint(NUM_CLASSES, (size,), generator=own)
    return LabelledBatch(
        keys=tuple(f"{step}-{index}" for index in range(size)), image=noisy(patterns[label], own), label=label
    )

"""The settings of the quickstart, and derived values."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs
from attrs import validators

from examples.quickstart.emoji.dataset import EmojiDataSpec
from examples.quickstart.emoji.teachers import EmojiTeacherSpec, drawing_input, emoji_augmentation
from mobileclip.data import AugmentationSpec, crop_augmentation
from mobileclip.encoders import AttentionSpec, DualEncoderSpec, MCiSpec, MCtSpec, StageSpec
from mobileclip.inputs import TextInput
from mobileclip.losses import ContrastiveLossSpec, LossSpec, ReinforcedLossSpec
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec

TEACHER_SIZE = 128


@attrs.frozen(kw_only=True)
class Row:
    """One way to train.

    Args:
        title: description of the training data, for the table.
        synthetic_captions: whether every image has a synthetic caption in addition to the real caption.
        teachers: whether the student learns only from the teachers' embeddings of images and captions.
    """

    title: str
    synthetic_captions: bool = True
    teachers: bool = False


# All have the same images, views, real captions and steps.
ROWS = {
    "plain": Row(title="plain CLIP", synthetic_captions=False),
    "captions": Row(title="+ synthetic captions"),
    "reinforced": Row(title="+ teachers: reinforced", teachers=True),
}
TEACHERS = "teachers"
TITLES = {name: row.title for name, row in ROWS.items()} | {TEACHERS: "the teachers"}


@attrs.frozen(kw_only=True)
class QuickstartSpec:
    """Settings of the quickstart.

    Args:
        output: folder for all results; finished steps in this folder are not repeated.
        full: whether to use all concepts, 10 stored augmentations per image and 100 epochs: hours, not minutes.
        concept_share: fraction of the concepts to use; in the same time, a model learns fewer concepts better.
        teacher_share: fraction of the concepts for training the teachers, at least `concept_share`. With 1, the
            teachers learn the names and drawings of all concepts except the test images, which are held out by the same
            families. With `concept_share`, they learn from the students' images.
        num_augmentations: number of stored augmentations per image.
        num_epochs: number of passes over the training images.
        views: strength of the stored augmentations: `weak` keeps nearly the whole image, which the teachers still
            recognise; `strong` is the published policy with larger crops, whose views the teachers hardly recognise.
        num_seeds: number of seeds for repeating all trainings, with mean and spread in the report.
        seed: seed of the first trainings; further trainings use the next numbers.
        data_seed: seed of the choice of concepts and of held-out images, and of the real captions.
        batch_size: number of images per step.
        learning_rate: peak learning rate of the cosine schedule.
    """

    output: Path = Path("outputs/quickstart")
    full: bool = False
    concept_share: float = attrs.field(default=0.25, validator=[validators.gt(0), validators.le(1)])
    teacher_share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    num_augmentations: int = attrs.field(default=4, validator=validators.gt(0))
    num_epochs: int = attrs.field(default=60, validator=validators.gt(0))
    views: Literal["weak", "strong"] = attrs.field(default="weak", validator=validators.in_(("weak", "strong")))
    num_seeds: int = attrs.field(default=1, validator=validators.gt(0))
    seed: int = attrs.field(default=0, validator=validators.ge(0))
    data_seed: int = attrs.field(default=0, validator=validators.ge(0))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=3e-3, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        if self.teacher_share < self.resolved.concept_share:
            raise ValueError(
                f"teacher_share is {self.teacher_share}, but must be at least concept_share, "
                f"{self.resolved.concept_share}, so that the teachers learn all concepts of the student"
            )

    @property
    def resolved(self) -> QuickstartSpec:
        """The spec with the settings of `full` filled in."""
        if not self.full:
            return self
        return attrs.evolve(self, full=False, concept_share=1.0, num_augmentations=10, num_epochs=100)

    @property
    def data(self) -> EmojiDataSpec:
        """The data set."""
        return EmojiDataSpec(concept_share=self.concept_share, seed=self.data_seed)

    @property
    def teacher_data(self) -> EmojiDataSpec:
        """The data set for training the teachers."""
        return attrs.evolve(self.data, concept_share=self.teacher_share)

    @property
    def teachers(self) -> EmojiTeacherSpec:
        """The ensemble."""
        return EmojiTeacherSpec(image_size=TEACHER_SIZE, augmentation=self.augmentation(TEACHER_SIZE))

    def reinforcement(self, shards: tuple[Path, ...]) -> ReinforcementSpec:
        """Return the reinforcement of the training shards."""
        return ReinforcementSpec(
            source=[str(shard) for shard in shards],
            output=str(self.output / "reinforced"),
            augmentation=self.teachers.augmentation,
            num_augmentations=self.num_augmentations,
            seed=self.teachers.seed,
        )

    def augmentation(self, size: int) -> AugmentationSpec:
        """Return the augmentation policy at a teacher's or the student's size, in pixels."""
        return emoji_augmentation(size) if self.views == "strong" else crop_augmentation(size)

    def training(self, loss: LossSpec, *, num_samples: int, seed: int) -> TrainingSpec:
        """Return one training; all trainings are equal except for the loss and the seed."""
        total_steps = max(2, num_samples // self.batch_size * self.num_epochs)
        return TrainingSpec(
            loss=loss,
            schedule=CosineSchedule(
                peak=self.learning_rate,
                final=self.learning_rate / 100,
                warmup_steps=total_steps // 10,
                total_steps=total_steps,
            ),
            optimizer=AdamWSpec(weight_decay=0.1),
            ema_decay=0.98,
            seed=seed,
            log_every_steps=5,
            checkpoint_every_steps=50,
        )


def loss_of(row: Row, teachers: TeacherEnsemble) -> LossSpec:
    """Return the loss of a row of the table."""
    if not row.teachers:
        return ContrastiveLossSpec()
    return ReinforcedLossSpec(teacher_dims=teachers.dims, teacher_logit_scales=teachers.logit_scales)


def student() -> DualEncoderSpec:
    """Return a MobileCLIP for images of 48 pixels and short texts: MCi and MCt, scaled down."""
    return DualEncoderSpec(
        image=MCiSpec(
            stages=(
                StageSpec(dim=16, depth=1),
                StageSpec(dim=48, depth=1),
                StageSpec(dim=96, depth=2, mixer=AttentionSpec()),
            ),
            embedding_dim=256,
            input=drawing_input(48),
        ),
        text=MCtSpec(
            width=64,
            num_heads=2,
            depth=1,
            embedding_dim=256,
            input=TextInput(context_length=24, vocab_size=16384),
        ),
    )

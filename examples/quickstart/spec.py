"""The choices of the quickstart, and what follows from them."""

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
        title: what it learns from, for the table.
        synthetic_captions: whether every picture has a synthetic caption beside the real one.
        teachers: whether it learns what the teachers said of both; it then has no loss but that.
    """

    title: str
    synthetic_captions: bool = True
    teachers: bool = False


# Each has what the one before has: the same pictures, views, real captions and steps.
ROWS = {
    "plain": Row(title="plain CLIP", synthetic_captions=False),
    "captions": Row(title="+ synthetic captions"),
    "reinforced": Row(title="+ teachers: reinforced", teachers=True),
}
TEACHERS = "teachers"
TITLES = {name: row.title for name, row in ROWS.items()} | {TEACHERS: "the teachers"}


@attrs.frozen(kw_only=True)
class QuickstartSpec:
    """The choices of the quickstart.

    Args:
        output: folder of everything that is made; a finished step in it is not done again.
        full: take all concepts, store 10 augmentations per picture and train for 100 epochs: hours, not minutes.
        concept_share: fraction of the concepts to take; in the same time, fewer are learned better.
        teacher_share: fraction of the concepts that the teachers learn, `concept_share` or more: of 1, they know the
            names and drawings of all concepts but the test pictures, which are held out by the same families.
        num_augmentations: augmentations stored per picture.
        num_epochs: passes over the training pictures.
        views: how strongly the stored pictures are augmented: `weak` for nearly the whole picture, which the teachers
            still recognise, or `strong` for the published policy with larger crops, whose views they hardly do.
        num_seeds: repeat all trainings with so many seeds and report mean and spread.
        seed: of the first trainings; the others count on.
        data_seed: of which concepts there are, and of which pictures are held out; also of the real captions.
        batch_size: pictures per step.
        learning_rate: peak of the cosine schedule.
    """

    output: Path = Path("outputs/quickstart")
    full: bool = False
    concept_share: float = attrs.field(default=0.25, validator=[validators.gt(0), validators.le(1)])
    teacher_share: float | None = attrs.field(
        default=None, validator=validators.optional([validators.gt(0), validators.le(1)])
    )
    num_augmentations: int = attrs.field(default=4, validator=validators.gt(0))
    num_epochs: int = attrs.field(default=30, validator=validators.gt(0))
    views: Literal["weak", "strong"] = attrs.field(default="weak", validator=validators.in_(("weak", "strong")))
    num_seeds: int = attrs.field(default=1, validator=validators.gt(0))
    seed: int = attrs.field(default=0, validator=validators.ge(0))
    data_seed: int = attrs.field(default=0, validator=validators.ge(0))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=3e-3, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        if self.teacher_share is not None and self.teacher_share < self.resolved.concept_share:
            raise ValueError(
                f"teacher_share is {self.teacher_share} and concept_share {self.resolved.concept_share}; expected "
                "teachers that learn at least the student's concepts"
            )

    @property
    def resolved(self) -> QuickstartSpec:
        """The spec with `full` spelled out."""
        if not self.full:
            return self
        return attrs.evolve(self, full=False, concept_share=1.0, num_augmentations=10, num_epochs=100)

    @property
    def data(self) -> EmojiDataSpec:
        """The data set."""
        return EmojiDataSpec(concept_share=self.concept_share, seed=self.data_seed)

    @property
    def teacher_data(self) -> EmojiDataSpec | None:
        """The data set that the teachers learn from; None where it is the student's."""
        return None if self.teacher_share is None else attrs.evolve(self.data, concept_share=self.teacher_share)

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
        """Return the policy of the views at a teacher's or the student's size, in pixels."""
        return emoji_augmentation(size) if self.views == "strong" else crop_augmentation(size)

    def training(self, loss: LossSpec, *, num_samples: int, seed: int) -> TrainingSpec:
        """Return one training; all are alike but for the loss and the seed."""
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
    """Return what a row minimises."""
    if not row.teachers:
        return ContrastiveLossSpec()
    return ReinforcedLossSpec(teacher_dims=teachers.dims, teacher_logit_scales=teachers.logit_scales)


def student() -> DualEncoderSpec:
    """Return a MobileCLIP for pictures of 48 pixels and short texts: MCi and MCt, scaled down."""
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

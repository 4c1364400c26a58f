"""The choices of the quickstart, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators
from emoji import EmojiDataSpec, EmojiTeacherSpec, emoji_augmentation

from mobileclip.data import ReinforcedPipelineSpec
from mobileclip.encoders import AttentionSpec, DualEncoderSpec, MCiSpec, MCtSpec, StageSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ContrastiveLossSpec, LossSpec, ReinforcedLossSpec
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec

TEACHER_SIZE = 128


@attrs.frozen(kw_only=True)
class QuickstartSpec:
    """The choices of the quickstart.

    Args:
        output: folder of everything that is made; a finished step in it is not done again.
        full: store 10 augmentations per picture and train for 40 epochs: hours instead of minutes.
        num_augmentations: augmentations stored per picture.
        num_epochs: passes over the training pictures.
        num_seeds: repeat both trainings with so many seeds and report mean and spread.
        max_train_images: train on so many pictures only, chosen at random; None for all.
        batch_size: pictures per step.
        learning_rate: peak of the cosine schedule.
    """

    output: Path = Path("outputs/quickstart")
    full: bool = False
    num_augmentations: int = attrs.field(default=4, validator=validators.gt(0))
    num_epochs: int = attrs.field(default=8, validator=validators.gt(0))
    num_seeds: int = attrs.field(default=1, validator=validators.gt(0))
    max_train_images: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    batch_size: int = attrs.field(default=128, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=2e-3, validator=validators.gt(0))

    @property
    def resolved(self) -> QuickstartSpec:
        """The spec with `full` spelled out."""
        return attrs.evolve(self, full=False, num_augmentations=10, num_epochs=40) if self.full else self

    @property
    def data(self) -> EmojiDataSpec:
        """The data set."""
        return EmojiDataSpec(max_train_images=self.max_train_images)

    @property
    def teachers(self) -> EmojiTeacherSpec:
        """The ensemble."""
        return EmojiTeacherSpec(image_size=TEACHER_SIZE, augmentation=emoji_augmentation(TEACHER_SIZE))

    def reinforcement(self, shards: tuple[Path, ...]) -> ReinforcementSpec:
        """Return the reinforcement of the training shards."""
        return ReinforcementSpec(
            shards=[str(shard) for shard in shards],
            output=str(self.output / "reinforced"),
            augmentation=self.teachers.augmentation,
            num_augmentations=self.num_augmentations,
            seed=self.teachers.seed,
            layout="pth.gz",
            num_workers=2,
        )

    def pipeline(self, shards: tuple[Path, ...], *, num_samples: int, seed: int) -> ReinforcedPipelineSpec:
        """Return the batches of one training."""
        model = student()
        return ReinforcedPipelineSpec(
            shards=[str(shard) for shard in shards],
            batch_size=self.batch_size,
            image=model.image.input,
            text=model.text.input,
            augmentation=emoji_augmentation(model.image.input.size),
            num_samples=num_samples,
            seed=seed,
        )

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
            ema_decay=0.95,
            seed=seed,
            log_every_steps=5,
            checkpoint_every_steps=50,
        )


def losses(teachers: TeacherEnsemble) -> dict[str, LossSpec]:
    """Return the losses that are compared, by what people read: without and with what the teachers said."""
    return {
        "plain": ContrastiveLossSpec(),
        "reinforced": ReinforcedLossSpec(teacher_dims=teachers.dims, teacher_logit_scales=teachers.logit_scales),
    }


def student() -> DualEncoderSpec:
    """Return a MobileCLIP for pictures of 64 pixels and short texts: MCi and MCt, scaled down."""
    return DualEncoderSpec(
        image=MCiSpec(
            stages=(
                StageSpec(dim=16, depth=1),
                StageSpec(dim=48, depth=1),
                StageSpec(dim=96, depth=2, mixer=AttentionSpec()),
            ),
            embedding_dim=256,
            layer_scale=0.1,
            input=ImageInput(size=64),
        ),
        text=MCtSpec(
            width=64,
            num_heads=2,
            depth=1,
            embedding_dim=256,
            layer_scale=0.1,
            input=TextInput(context_length=24, vocab_size=16384),
        ),
    )

"""The choices of the comparison, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from examples.learning_efficiency.data import RolesSpec
from examples.learning_efficiency.finetune import FineTuneSpec
from examples.quickstart.emoji import EmojiDataSpec, emoji_augmentation
from mobileclip.data import AugmentationSpec, crop_augmentation
from mobileclip.encoders import AttentionSpec, DualEncoderSpec, MCiSpec, StageSpec, TextTransformerSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ContrastiveLossSpec, LossSpec, ReinforcedLossSpec
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec


@attrs.frozen(kw_only=True)
class Variant:
    """One way to train.

    Args:
        title: what it adds, for the legend.
        synthetic_captions: whether every picture has a synthetic caption beside the real one.
        strong_augmentation: whether crops are small and two of RandAugment's operations follow.
        num_teachers: how many of the teachers are distilled, counted from the first; zero for the contrastive loss.
    """

    title: str
    synthetic_captions: bool = True
    strong_augmentation: bool = False
    num_teachers: int = 0


# Each adds one thing to the one before, as the paper's Table 2 does. The last is no rung of the ladder: it says how
# much of the rest is the captions' and the augmentation's doing, without any teacher.
VARIANTS = {
    "plain": Variant(title="plain", synthetic_captions=False),
    "captions": Variant(title="+ synthetic captions"),
    "distillation": Variant(title="+ distillation", num_teachers=1),
    "augmentation": Variant(title="+ strong augmentation", num_teachers=1, strong_augmentation=True),
    "ensemble": Variant(title="+ ensemble", num_teachers=2, strong_augmentation=True),
    "control": Variant(title="captions and strong augmentation, no teacher", strong_augmentation=True),
}
LADDER = ("plain", "captions", "distillation", "augmentation", "ensemble")

_OUTPUT = Path("outputs/learning_efficiency")
_TINY_OUTPUT = Path("outputs/learning_efficiency_tiny")
_TINY_BUDGETS = (2, 4)
_TINY_SHARE = 0.03


def _known(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    unknown = [name for name in value if name not in VARIANTS]
    if unknown or "plain" not in value:
        raise ValueError(
            f"{attribute.name} are some of {', '.join(VARIANTS)}, plain among them, which the others are compared "
            f"with; got {', '.join(value)}"
        )


def _increasing(_: object, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    if len(value) < 2 or value[0] < 2 or sorted(set(value)) != list(value):
        raise ValueError(f"{attribute.name} are two or more numbers of steps, each above the one before, not {value}")


@attrs.frozen(kw_only=True)
class EfficiencySpec:
    """The choices of the comparison.

    Args:
        output: folder of everything that is made; finished trainings in it are not done again.
        tiny: few concepts and steps, to see that it runs.
        concept_share: fraction of the concepts to take.
        budgets: steps of the trainings; each is a training of its own.
        num_seeds: how often every training is repeated.
        variants: what is compared.
        roles: who sees which pictures.
        teachers: the ensemble; the first is the single teacher.
        num_augmentations: augmentations stored per picture, of either policy.
        image_size: side of the student's pictures, in pixels.
        batch_size: pictures per step.
        learning_rate: peak of every training's cosine schedule.
        weight_decay: of AdamW.
        distill_weight: of the distillation term; the contrastive one has the rest.
        num_processes: trainings at once, one core each.
    """

    output: Path = _OUTPUT
    tiny: bool = False
    concept_share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    budgets: tuple[int, ...] = attrs.field(default=(100, 200, 400, 800, 1600), validator=_increasing)
    num_seeds: int = attrs.field(default=5, validator=validators.gt(0))
    variants: tuple[str, ...] = attrs.field(default=tuple(VARIANTS), validator=_known)
    roles: RolesSpec = RolesSpec()
    teachers: tuple[FineTuneSpec, ...] = attrs.field(
        default=(
            FineTuneSpec(name="first", seed=1),
            FineTuneSpec(name="second", seed=2),
        ),
        validator=validators.min_len(2),
    )
    num_augmentations: int = attrs.field(default=30, validator=validators.gt(0))
    image_size: int = attrs.field(default=32, validator=validators.ge(32))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=3e-3, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.1, validator=validators.ge(0))
    distill_weight: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    num_processes: int = attrs.field(default=2, validator=validators.gt(0))

    @property
    def resolved(self) -> EfficiencySpec:
        """The spec with `tiny` spelled out."""
        if not self.tiny:
            return self
        return attrs.evolve(
            self,
            tiny=False,
            output=_TINY_OUTPUT if self.output == _OUTPUT else self.output,
            concept_share=_TINY_SHARE,
            roles=attrs.evolve(self.roles, student_share=0.5),
            budgets=_TINY_BUDGETS,
            num_seeds=2,
            teachers=tuple(attrs.evolve(one, image_size=32, epochs=1) for one in self.teachers),
            num_augmentations=2,
            image_size=32,
            batch_size=8,
        )

    @property
    def identity(self) -> EfficiencySpec:
        """The choices that every training depends on: without those that say how many trainings there are."""
        return attrs.evolve(
            self,
            output=_OUTPUT,
            budgets=EfficiencySpec().budgets,
            num_seeds=1,
            variants=("plain",),
            num_processes=1,
        )

    @property
    def data(self) -> EmojiDataSpec:
        """The quickstart's drawings, of all concepts, with one vendor's drawing of nearly each held out."""
        return EmojiDataSpec(
            concept_share=self.concept_share,
            concept_fraction=0.01,
            rendering_fraction=0.99,
            num_processes=self.num_processes,
        )

    def policy(self, *, strong: bool, size: int) -> AugmentationSpec:
        """Return the strong or the weak augmentation."""
        return emoji_augmentation(size) if strong else crop_augmentation(size)

    def loss(self, variant: Variant, *, dims: tuple[int, ...], logit_scales: tuple[float, ...]) -> LossSpec:
        """Return what a variant minimises.

        Args:
            variant: the variant.
            dims: the ensemble's, teacher by teacher.
            logit_scales: the ensemble's, as its trainings ended.
        """
        if variant.num_teachers == 0:
            return ContrastiveLossSpec()
        return ReinforcedLossSpec(
            teacher_dims=dims[: variant.num_teachers],
            teacher_logit_scales=logit_scales[: variant.num_teachers],
            contrastive_weight=1 - self.distill_weight,
            distill_weight=self.distill_weight,
        )

    def training(self, loss: LossSpec, *, budget: int, seed: int) -> TrainingSpec:
        """Return one training; all are alike but for the loss, the length and the seed."""
        return TrainingSpec(
            loss=loss,
            schedule=CosineSchedule(
                peak=self.learning_rate,
                final=self.learning_rate / 100,
                warmup_steps=budget // 10,
                total_steps=budget,
            ),
            optimizer=AdamWSpec(weight_decay=self.weight_decay),
            # An average over steps would keep some of the first weights in the shortest trainings.
            ema_decay=None,
            seed=seed,
            log_every_steps=20,
            checkpoint_every_steps=400,
        )

    @property
    def student(self) -> DualEncoderSpec:
        """A MobileCLIP for small pictures and short texts: MCi as in the quickstart and one transformer layer."""
        return DualEncoderSpec(
            image=MCiSpec(
                stages=(
                    StageSpec(dim=16, depth=1),
                    StageSpec(dim=48, depth=1),
                    StageSpec(dim=96, depth=2, mixer=AttentionSpec()),
                ),
                embedding_dim=256,
                input=ImageInput(size=self.image_size),
            ),
            text=TextTransformerSpec(
                width=64,
                num_heads=2,
                depth=1,
                embedding_dim=256,
                input=TextInput(context_length=24, vocab_size=16384),
            ),
        )

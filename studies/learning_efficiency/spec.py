"""The settings of the study, and derived values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import validators

from examples.icons import IconDataSpec
from examples.icons.sets import FREE_SETS
from examples.quickstart.emoji.teachers import drawing_input
from mobileclip.encoders import AttentionSpec, DualEncoderSpec, MCiSpec, StageSpec, TextTransformerSpec
from mobileclip.inputs import TextInput
from mobileclip.losses import (
    ContrastiveLossSpec,
    LossSpec,
    ReinforcedLossSpec,
    ReinforcedSigmoidLossSpec,
    SigmoidLossSpec,
)
from mobileclip.serialization import to_json
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec
from studies.learning_efficiency.finetune import FineTuneSpec
from studies.learning_efficiency.variants import FIRST, OTHER, PARTS, SECOND, VARIANTS, Variant

_OUTPUT = Path("outputs/learning_efficiency")
_TINY_OUTPUT = Path("outputs/learning_efficiency_tiny")
_TINY_SETS = ("bi", "lucide", "tabler", "noto")
# In the digest of a study as it was when the first results were written: more parts change none of them.
_DIGESTED_PARTS = ("ladder", "strengths", "ablations", "long")
_FREE = tuple(one.name for one in FREE_SETS)


def _increasing(_: object, attribute: attrs.Attribute[Any], value: Sequence[float]) -> None:
    if sorted(set(value)) != list(value) or value[0] <= 0:
        raise ValueError(f"{attribute.name} must be increasing numbers above zero, not {value}")


def some_of(
    names: Iterable[str], *, at_least: int = 0
) -> Callable[[object, attrs.Attribute[tuple[str, ...]], tuple[str, ...]], None]:
    """Return the validator of a field with a selection of names."""

    def check(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
        unknown = sorted(set(value) - set(names))
        if unknown or len(value) < at_least:
            raise ValueError(
                f"{attribute.name} must be a selection of {', '.join(names)}; got {', '.join(unknown) or 'none'}"
            )

    return check


@attrs.frozen(kw_only=True)
class Cell:
    """One training.

    Args:
        variant: name of a variant.
        share: the student's share of the training images.
        budget: number of steps.
        seed: seed of the weights, the order of images and the choice of captions.
        learning_rate: peak learning rate; None for the study's learning rate.
    """

    variant: str
    share: float
    budget: int
    seed: int
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """A path for its folder."""
        own = "" if self.learning_rate is None else f"/{self.learning_rate:g}"
        return f"{self.variant}/{self.share:g}/{self.budget}/{self.seed}{own}"


@attrs.frozen(kw_only=True)
class EfficiencySpec:
    """Settings of the study.

    Args:
        output: folder for all results; finished trainings in this folder are not repeated.
        tiny: whether to use four icon sets, small teachers and few steps, for a quick test.
        parts: parts of the study to run, from `ladder`, `strengths`, `ablations`, `captions`, `rates` and `long`.
        variants: training variants of these parts to run; all if empty.
        num_seeds: number of seeds per training; the longest trainings have one seed.
        budgets: four numbers of steps, each for a separate training.
        shares: three fractions of the training images for students.
        data: the icons, without the share-alike set, so that models can be distributed.
        teachers: available teachers.
        image_size: side of the student's images, in pixels.
        batch_size: pictures per step.
        learning_rate: peak learning rate of the cosine schedule in all parts except `rates`.
        weight_decay: weight decay of AdamW.
        seed: seed of the assignment of images, and of the stored augmentations.
        num_processes: number of parallel trainings, on one core each.
    """

    output: Path = _OUTPUT
    tiny: bool = False
    parts: tuple[str, ...] = attrs.field(default=tuple(PARTS), validator=some_of(PARTS, at_least=1))
    variants: tuple[str, ...] = attrs.field(default=(), validator=some_of(VARIANTS))
    num_seeds: int = attrs.field(default=3, validator=validators.gt(0))
    budgets: tuple[int, int, int, int] = attrs.field(default=(400, 1600, 6400, 25600), validator=_increasing)
    shares: tuple[float, float, float] = attrs.field(default=(0.01, 0.1, 1.0), validator=_increasing)
    data: IconDataSpec = IconDataSpec(sets=_FREE)
    teachers: tuple[FineTuneSpec, ...] = (
        FineTuneSpec(name=FIRST, seed=1),
        FineTuneSpec(name=SECOND, seed=2),
        FineTuneSpec(name=OTHER, trunk="mci", seed=3),
    )
    image_size: int = attrs.field(default=32, validator=validators.ge(32))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=3e-3, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.1, validator=validators.ge(0))
    seed: int = 0
    num_processes: int = attrs.field(default=2, validator=validators.gt(0))

    @property
    def resolved(self) -> EfficiencySpec:
        """The spec with the settings of `tiny` filled in."""
        if not self.tiny:
            return self
        return attrs.evolve(
            self,
            tiny=False,
            output=_TINY_OUTPUT if self.output == _OUTPUT else self.output,
            num_seeds=1,
            budgets=(2, 4, 6, 8),
            shares=(0.3, 0.6, 1.0),
            data=attrs.evolve(self.data, sets=_TINY_SETS, image_size=32),
            teachers=tuple(attrs.evolve(one, image_size=32, epochs=1) for one in self.teachers),
            batch_size=8,
        )

    @property
    def study(self) -> str:
        """A digest of all settings that affect a training, without the settings that select trainings."""
        every = EfficiencySpec()
        own = attrs.evolve(
            self,
            output=every.output,
            parts=_DIGESTED_PARTS,
            variants=every.variants,
            num_seeds=every.num_seeds,
            budgets=every.budgets,
            shares=every.shares,
            data=attrs.evolve(self.data, output=every.data.output, num_processes=every.data.num_processes),
            num_processes=every.num_processes,
        )
        return hashlib.sha256(to_json(own).encode()).hexdigest()[:12]

    def cells(self, parts: Sequence[str] | None = None) -> list[Cell]:
        """Return the trainings of the given parts, or of all requested parts, without repetition.

        The longest trainings come last. Trainings of equal length are sorted by seed, so that an unfinished study has
        complete tables of its shorter trainings.
        """
        every = {
            Cell(variant=name, share=self.shares[share], budget=self.budgets[budget], seed=seed, learning_rate=rate)
            for part in map(PARTS.__getitem__, parts or self.parts)
            for name in part.variants
            if not self.variants or name in self.variants
            for share, budgets in part.budgets.items()
            for budget in budgets
            for seed in range(self.num_seeds)[: part.most_seeds]
            for rate in part.learning_rates
        }
        order = list(VARIANTS)
        return sorted(
            every,
            key=lambda one: (one.budget, one.seed, one.share, order.index(one.variant), one.learning_rate or 0),
        )

    def loss(self, variant: Variant, *, dims: tuple[int, ...], logit_scales: tuple[float, ...]) -> LossSpec:
        """Return what a variant minimises.

        Args:
            variant: the variant.
            dims: widths of the teachers' embeddings.
            logit_scales: learned logit scales of the teachers.
        """
        if not variant.teachers:
            return SigmoidLossSpec() if variant.sigmoid else ContrastiveLossSpec()
        reinforced = ReinforcedSigmoidLossSpec if variant.sigmoid else ReinforcedLossSpec
        return reinforced(
            teacher_dims=dims,
            teacher_logit_scales=tuple(scale * variant.scale_factor for scale in logit_scales),
            contrastive_weight=1 - variant.distill_weight,
            distill_weight=variant.distill_weight,
        )

    def training(self, loss: LossSpec, *, budget: int, seed: int, learning_rate: float | None = None) -> TrainingSpec:
        """Return one training; trainings differ only in the loss, the length, the seed and the learning rate."""
        peak = self.learning_rate if learning_rate is None else learning_rate
        return TrainingSpec(
            loss=loss,
            schedule=CosineSchedule(
                peak=peak,
                final=peak / 100,
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
        """A MobileCLIP for small images and short texts: MCi as in the quickstart, and one transformer layer."""
        return DualEncoderSpec(
            image=MCiSpec(
                stages=(
                    StageSpec(dim=16, depth=1),
                    StageSpec(dim=48, depth=1),
                    StageSpec(dim=96, depth=2, mixer=AttentionSpec()),
                ),
                embedding_dim=256,
                input=drawing_input(self.image_size),
            ),
            text=TextTransformerSpec(
                width=64,
                num_heads=2,
                depth=1,
                embedding_dim=256,
                input=TextInput(context_length=24, vocab_size=16384),
            ),
        )

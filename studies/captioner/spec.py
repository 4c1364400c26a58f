"""The settings of the study: captioners, arms of students, and derived values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from examples.icons import IconDataSpec
from examples.icons.sets import FREE_SETS
from examples.quickstart.emoji.efficientnet import HEAD_CHANNELS, MEAN, STD, EfficientNetLite0, folded_state
from examples.quickstart.emoji.trunks import image_weights
from mobileclip.data import ReinforcedPipelineSpec, crop_augmentation
from mobileclip.encoders import CoCaSpec, ImageEncoderSpec, TextTransformerSpec
from mobileclip.encoders.checkpoints import save_model
from mobileclip.encoders.families import image_encoder_families
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import CaptionLossSpec
from mobileclip.serialization import to_json
from mobileclip.training import AdamWSpec, CosineSchedule, RunSpec, TrainingSpec
from mobileclip.training.optimizer import optimizers
from studies.learning_efficiency.spec import Cell, EfficiencySpec, some_of
from studies.learning_efficiency.variants import FIRST, SECOND

_OUTPUT, _TINY_OUTPUT = Path("outputs/captioner"), Path("outputs/captioner_tiny")
_TINY_SETS = ("bi", "lucide", "tabler", "noto")
_FREE = tuple(one.name for one in FREE_SETS)
LINES = "lines.jsonl"
Captions = Literal["none", "composed", "written", "both"]


_NUM_FROZEN = 3


@image_encoder_families.register("efficientnet_lite0_map")
@attrs.frozen(kw_only=True)
class LiteMapSpec(ImageEncoderSpec):
    """EfficientNet-Lite0 for a captioner, which pools the last feature map."""

    def build(self) -> nn.Module:
        """Return the tower, which has no projection and returns only feature maps."""
        return LiteMap()


class LiteMap(EfficientNetLite0):
    """Return the last feature map, (batch, 1280, height / 32, width / 32); the early layers stay frozen."""

    dims = (HEAD_CHANNELS,)

    def __init__(self) -> None:
        super().__init__()
        for part in (self.stem, *self.blocks[:_NUM_FROZEN]):
            part.requires_grad_(requires_grad=False)

    def backbone(self) -> LiteMap:
        """Return the tower itself."""
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return the map."""
        return self.features(image.contiguous(memory_format=torch.channels_last))


@optimizers.register("pretrained_tower_adamw")
@attrs.frozen(kw_only=True)
class PretrainedTowerAdamWSpec(AdamWSpec):
    """AdamW with a reduced learning rate for the pretrained image tower.

    Args:
        part: fraction of the scheduled learning rate.
    """

    part: float = attrs.field(default=0.15, validator=validators.gt(0))

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimiser of a captioner, or of the module that trains a captioner."""
        optimizer = super().build(model)
        tower = {one for name, one in model.named_parameters() if "image_encoder." in name}
        for group in [*optimizer.param_groups]:
            own = [one for one in group["params"] if one in tower]
            group["params"] = [one for one in group["params"] if one not in tower]
            if own:
                optimizer.add_param_group({**group, "params": own, "rate_scale": self.part})
        return optimizer


def write_start(spec: CoCaSpec, path: Path, *, seed: int) -> None:
    """Write an untrained captioner with ImageNet weights in the image tower.

    Args:
        spec: with a `LiteMapSpec`.
        path: path of the file.
        seed: seed of the random weights.
    """
    torch.manual_seed(seed)
    model = spec.build()
    model.image_encoder.load_state_dict(folded_state(image_weights()))
    save_model(model, path)


@attrs.frozen(kw_only=True)
class Writer:
    """A captioner.

    Args:
        name: name of the captioner's folder.
        share: share of the captioners' images for this captioner.
        context: ids of a text.
    """

    name: str = "whole"
    share: float = 1.0
    context: int = 24


_WRITERS = (Writer(), Writer(name="quarter", share=0.25), Writer(name="short", context=12))
WRITERS = {one.name: one for one in _WRITERS}


@attrs.frozen(kw_only=True)
class Arm:
    """An arm: the captions that a student learns in addition to the keywords.

    Args:
        title: title in tables.
        captions: `none`, `composed` (templates with the name), `written` by a captioner, or `both`.
        writers: the captioners, by name.
        num_captions: number of captions per image and captioner.
        temperature: sampling temperature of the captions.
        teachers: names of the teachers that the student distils; none, one or two.
        scale: factor of the teacher's logit scale: 0.5, 1, 2 or 4.
        is_shuffled: whether each image has the unrelated captions of another image.
    """

    title: str
    captions: Captions
    writers: tuple[str, ...] = ("whole",)
    num_captions: int = 4
    temperature: float = 1.0
    teachers: tuple[str, ...] = ()
    scale: float = 1.0
    is_shuffled: bool = False

    @property
    def has_writers(self) -> bool:
        """Whether captioners write for it."""
        return self.captions in ("written", "both")

    @property
    def source(self) -> str:
        """Name of its captions' folder."""
        own = f"-{'-'.join(self.writers)}-{self.num_captions}-{self.temperature:g}" if self.has_writers else ""
        own += "-shuffled" if self.is_shuffled else ""
        return f"{'composed' if self.captions == 'none' else self.captions}{own}"

    @property
    def own_captions(self) -> str:
        """The fields that identify the captions of the arm, without teachers, which do not change the captions."""
        return f"{self.captions} {self.source}"

    @property
    def variant(self) -> str:
        """The arm's training variant in the study of learning efficiency."""
        if len(self.teachers) > 1:
            return "ensemble-weak"
        if self.scale != 1:
            return f"scale-{self.scale:g}"
        with_captions, without = ("distillation", "captions-0") if self.teachers else ("captions", "plain")
        return without if self.captions == "none" else with_captions


_MAIN = {
    "none": Arm(title="keywords alone", captions="none"),
    "composed": Arm(title="+ composed captions", captions="composed"),
    "written": Arm(title="+ the captioner's", captions="written"),
    "both": Arm(title="+ both", captions="both"),
    "shuffled": Arm(title="+ the captioner's, of other pictures", captions="written", is_shuffled=True),
}
MAIN = {
    **_MAIN,
    **{
        f"{name}-teacher": attrs.evolve(arm, title=f"{arm.title}, a teacher", teachers=(FIRST,))
        for name, arm in _MAIN.items()
    },
}
_WRITTEN, _TAUGHT = MAIN["written"], MAIN["written-teacher"]
ABLATIONS = {
    "quarter": attrs.evolve(_WRITTEN, title="a captioner of a quarter of the pictures", writers=("quarter",)),
    "short": attrs.evolve(_WRITTEN, title="a captioner of context 12", writers=("short",)),
    "mixed": attrs.evolve(_WRITTEN, title="all three captioners", writers=tuple(WRITERS)),
    "one": attrs.evolve(_WRITTEN, title="1 caption", num_captions=1),
    "eight": attrs.evolve(_WRITTEN, title="8 captions", num_captions=8),
    "cold": attrs.evolve(_WRITTEN, title="captions drawn at temperature 0.5", temperature=0.5),
    "hot": attrs.evolve(_WRITTEN, title="captions drawn at temperature 1.5", temperature=1.5),
    "half": attrs.evolve(_TAUGHT, title="half the teacher's logit scale", scale=0.5),
    "twice": attrs.evolve(_TAUGHT, title="twice the teacher's logit scale", scale=2.0),
    "pair": attrs.evolve(_TAUGHT, title="two teachers", teachers=(FIRST, SECOND)),
}
ARMS = {**MAIN, **ABLATIONS}


@attrs.frozen(kw_only=True)
class CaptionerStudySpec:
    """Settings of the study.

    Args:
        output: folder for all results; finished steps in this folder are not repeated.
        tiny: whether to use four sets and few images and steps, for a quick test.
        arms: arms to train; all if empty.
        budgets: numbers of steps of students; ablations use only the middle number.
        num_seeds: number of seeds per training.
        captioner_sets: icon sets for training the captioner with template captions; students learn the other sets.
        captioner_epochs: number of passes of a captioner over all its images; a captioner with fewer images takes the
            same number of steps.
        num_pictures: maximum number of the students' images.
        data: the icons.
        image_size: side of the students' images, in pixels.
        captioner_size: likewise, of captioners.
        batch_size: pictures per step.
        seed: seed of the captions, and of the assignment of images.
    """

    output: Path = _OUTPUT
    tiny: bool = False
    arms: tuple[str, ...] = attrs.field(default=(), validator=some_of(ARMS))
    budgets: tuple[int, int, int] = (200, 800, 3200)
    num_seeds: int = attrs.field(default=3, validator=validators.gt(0))
    captioner_sets: tuple[str, ...] = ("lucide", "tabler", "mdi", "ri", "ion", "fluent-ui", "noto", "fluent")
    captioner_epochs: int = attrs.field(default=20, validator=validators.gt(0))
    num_pictures: int = attrs.field(default=4_000, validator=validators.gt(0))
    data: IconDataSpec = IconDataSpec(sets=_FREE)
    image_size: int = attrs.field(default=32, validator=validators.ge(32))
    captioner_size: int = attrs.field(default=64, validator=validators.ge(32))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    seed: int = 0

    @property
    def resolved(self) -> CaptionerStudySpec:
        """The spec with the settings of `tiny` filled in."""
        if not self.tiny:
            return self
        return attrs.evolve(
            self,
            tiny=False,
            output=_TINY_OUTPUT if self.output == _OUTPUT else self.output,
            arms=self.arms or ("none", "composed", "written", "both"),
            budgets=(2, 3, 4),
            num_seeds=1,
            captioner_sets=("lucide", "noto"),
            captioner_epochs=1,
            captioner_size=32,
            num_pictures=40,
            data=attrs.evolve(self.data, sets=_TINY_SETS, image_size=32),
            batch_size=8,
        )

    @property
    def study(self) -> str:
        """A digest of the settings that affect every line."""
        every = CaptionerStudySpec()
        own = attrs.evolve(
            self, output=every.output, arms=(), budgets=every.budgets, num_seeds=every.num_seeds,
            data=attrs.evolve(self.data, output=every.data.output, num_processes=every.data.num_processes),
        )  # fmt: skip
        return hashlib.sha256(to_json(own).encode()).hexdigest()[:12]

    def cells(self) -> list[tuple[str, Cell]]:
        """Return arms and trainings, the shortest first, and trainings without a teacher before the others."""
        chosen = self.arms or tuple(ARMS)
        found = [
            (name, Cell(variant=ARMS[name].variant, share=1.0, budget=budget, seed=seed))
            for name in chosen
            for budget in (self.budgets if name in MAIN else self.budgets[1:2])
            for seed in range(self.num_seeds)
        ]
        order = list(ARMS)
        return sorted(
            found, key=lambda one: (len(ARMS[one[0]].teachers), one[1].budget, one[1].seed, order.index(one[0]))
        )

    def students(self, source: str) -> EfficiencySpec:
        """Return the settings of the study of learning efficiency that trains students with a source of captions."""
        return EfficiencySpec(
            output=self.output / "students" / source, data=self.data, image_size=self.image_size,
            batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip

    def captioner(self, writer: Writer) -> CoCaSpec:
        """Return a captioner's model."""
        width = 128
        image = ImageInput(size=self.captioner_size, interpolation="bicubic", mean=MEAN, std=STD)
        return CoCaSpec(
            image=LiteMapSpec(embedding_dim=width, input=image),
            text=TextTransformerSpec(
                width=width, depth=1, num_heads=4, embedding_dim=width, causal=True,
                input=TextInput(context_length=writer.context, vocab_size=4096),
            ),
            decoder_depth=2,
            decoder_heads=4,
            num_queries=17,
            pooler_heads=4,
            class_mask="aligned",
        )  # fmt: skip

    def training(self, writer: Writer, shards: tuple[str, ...], num_pictures: int, start: Path) -> RunSpec:
        """Return a captioner's training run on template captions only.

        Args:
            writer: the captioner.
            shards: shards of the captioner's images.
            start: file with the initial weights.
            num_pictures: number of images of the captioner with all images, so that all captioners have the same number
                of steps.
        """
        model = self.captioner(writer)
        steps = max(2, self.captioner_epochs * num_pictures // self.batch_size)
        warmup = min(steps - 1, steps // 10 + 1)
        return RunSpec(
            model=model,
            initial_weights=start,
            data=ReinforcedPipelineSpec(
                shards=shards, batch_size=self.batch_size, sampling="endless", num_readers=4, image=model.image.input,
                text=model.text.input, reinforced=False, captions="synthetic", seed=self.seed,
                augmentation=crop_augmentation(model.image.input.size),
            ),
            training=TrainingSpec(
                loss=CaptionLossSpec(),
                schedule=CosineSchedule(peak=2e-3, final=2e-5, warmup_steps=warmup, total_steps=steps),
                optimizer=PretrainedTowerAdamWSpec(weight_decay=0.05),
                max_gradient_norm=1.0,
                ema_decay=None,
                seed=self.seed,
                checkpoint_every_steps=100,
            ),
        )  # fmt: skip


@attrs.frozen(kw_only=True)
class Line:
    """The results of an arm: of its captions, or of one student.

    Args:
        study: see `CaptionerStudySpec.study`.
        arm: name of the arm.
        kind: `captions` or `student`.
        values: numbers by name, with shares in per cent; for students, top-5 by part of the held-out drawings.
        seconds: wall-clock duration.
        budget: steps of the student.
        seed: seed of the student.
        processor_seconds: processor time of the process.
    """

    study: str
    arm: str
    kind: Literal["captions", "student"]
    values: Mapping[str, float]
    seconds: float
    budget: int = 0
    seed: int = 0
    processor_seconds: float | None = None

"""Fine-tuning options, and functions that prepare a model for fine-tuning and restore the model afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
from attrs import validators
from torch import nn
from tyro.conf import OmitArgPrefixes

from mobileclip.data import ReinforcedPipelineSpec, crop_augmentation
from mobileclip.datasets import RowOptions
from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.hardware import AUTO
from mobileclip.losses import LossSpec
from mobileclip.strict import strict
from mobileclip.training.distributed import COLLECTIVE_SECONDS
from mobileclip.training.finetuning.weights import freeze_batch_norm, ordinary_batch_norm, synchronise_batch_norm
from mobileclip.training.lora import LoraSpec, add_lora, merge_lora
from mobileclip.training.optimizer import AdamWSpec, Granularity, LayerDecayAdamWSpec, OptimizerSpec
from mobileclip.training.spec import CosineSchedule, TrainingSpec

BatchNormMode = Literal["frozen", "synchronised", "trained"]
Tower = Literal["image", "text"]


def _as_towers(values: Iterable[Tower]) -> tuple[Tower, ...]:
    return tuple(values)


def _towers(_: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if len(set(value)) < len(value):
        raise ValueError(f"{attribute.name} must name each tower at most once, got {value}")


@attrs.frozen(kw_only=True, field_transformer=strict)
class FinetuningSpec:
    """The settings of fine-tuning: frozen towers, batch norms and low-rank adapters.

    Args:
        batch_norm: `frozen` keeps the running statistics, weight and bias (for small batches); `synchronised` computes
            statistics over all processes; `trained` computes statistics per process (for large batches).
        frozen_towers: towers to freeze, `image` or `text`.
        lora: adapters to train instead of the weights; None trains the weights.

    Raises:
        ValueError: if a tower is unknown or repeated, or both towers are frozen.

    Examples:
        >>> from mobileclip.encoders import DualEncoder, MCtSpec, ViTSpec
        >>> image, text = ViTSpec(width=16, depth=1, num_heads=2), MCtSpec(width=16, depth=0, num_heads=2)
        >>> model = DualEncoder(image.build(), text.build())
        >>> FinetuningSpec(frozen_towers=("text",)).prepare(model)
        >>> any(parameter.requires_grad for parameter in model.text_encoder.parameters())
        False
    """

    batch_norm: BatchNormMode = attrs.field(default="frozen", validator=validators.in_(get_args(BatchNormMode)))
    frozen_towers: tuple[Tower, ...] = attrs.field(default=(), converter=_as_towers, validator=_towers)
    lora: LoraSpec | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.frozen_towers) == len(get_args(Tower)):
            raise ValueError("with both towers frozen, only the logit scale could be trained; freeze one tower")

    def prepare(self, model: DualEncoder) -> None:
        """Prepare `model` in place for `mobileclip.training.train`; torch's random generator initialises adapters.

        Raises:
            ValueError: if batch norms are to be synchronised without several GPU processes, or the adapters do not fit
                the model.
            ModuleNotFoundError: if peft is not installed.
        """
        for tower in self.frozen_towers:
            freeze_tower(model, tower)
        if self.batch_norm == "frozen":
            freeze_batch_norm(model)
        elif self.batch_norm == "synchronised":
            synchronise_batch_norm(model)
        if self.lora is not None:
            add_lora(model, self.lora)

    def finish(self, model: DualEncoder) -> None:
        """Restore the model's original structure in place: merge adapters, restore batch norms and unfreeze weights."""
        merge_lora(model)
        ordinary_batch_norm(model)
        model.eval().requires_grad_(requires_grad=True)


def freeze_tower(model: DualEncoder, tower: Tower) -> None:
    """Freeze one tower of `model`: the tower's weights get no gradient, and batch norms keep their statistics.

    With a frozen text tower, the embeddings of prompts do not change, and the image tower adapts to these embeddings.
    Locked-image tuning (Zhai et al.) freezes the image tower instead.

    Args:
        model: model, modified in place.
        tower: tower to freeze, `image` or `text`.

    Raises:
        ValueError: if `tower` is not `image` or `text`.
    """
    towers: dict[str, nn.Module] = {"image": model.image_encoder, "text": model.text_encoder}
    if tower not in towers:
        raise ValueError(f"the model does not have a tower {tower!r}; its towers are: {', '.join(towers)}")
    freeze_batch_norm(towers[tower].requires_grad_(requires_grad=False))


_BATCH_SIZE = 64

Kind = Literal["auto", "classes", "captions"]


def _alphas(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted({0.0, 1.0, *map(float, values)}))


def _fraction(_: object, attribute: attrs.Attribute[tuple[float, ...]], values: tuple[float, ...]) -> None:
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f"{attribute.name} must be between 0 (the original model) and 1 (the fine-tuned model); got {values}"
        )


@attrs.frozen(kw_only=True)
class FinetuneSpec:
    """The options of a fine-tuning run: model, data, training and tests.

    Args:
        checkpoint: a checkpoint of a model in training form, in any known layout, or `hf-hub:owner/name`.
        model: name of the checkpoint's model, such as `mobileclip_s2`; None if the file contains the name. As a flag,
            the option also accepts a file, NAME=FILE, or only a name for the published weights.
        data: data of the new task: a folder with one folder of images per class, a folder of images with captions, a
            `.jsonl` file, or webdataset shards.
        rows: column names of `.jsonl` files and tables.
        kind: kind of `data`: `classes`, `captions`, or `auto` to detect the kind.
        test: test data of the new task; None for held-out images of `data`.
        held_out: held-out fraction of `data`, per class for a folder of classes.
        retention_tasks: data of old tasks, on which to measure forgetting.
        templates: prompt templates for training and testing, with `{}` for the class name.
        output: output folder; a second run with the same folder resumes.
        batch_norm: mode of the batch norms: `frozen` (for small batches), `synchronised` over all GPUs, or `trained`.
        freeze: towers to freeze, `image` or `text`.
        rate_decay: ratio of a layer's learning rate to the rate of the next layer towards the output, in (0, 1]; 1 for
            equal learning rates.
        rate_layers: unit that counts as a layer of a convolutional tower: a `block` or a `stage`.
        lora_rank: rank of adapters to train instead of the weights (extra `lora`); None trains the weights.
        lora_extras: parameters or modules to train in addition to the adapters.
        epochs: number of passes over the training data.
        batch_size: images per step over all processes; None for the smaller of 64 and the number of images.
        learning_rate: peak learning rate of the cosine schedule.
        weight_decay: coefficient of weight decay for matrices and kernels.
        warmup_share: number of warm-up steps, as a fraction of all steps.
        max_gradient_norm: maximum norm of the gradient, for gradient clipping.
        precision: `float32`, or `bfloat16` to run the forward pass in autocast.
        num_workers: number of processes that read, decode and augment images; 0 uses the training process.
        seed: random seed for the sample order, the choice of captions and the adapters.
        alphas: interpolation weights to test, from 0 (the original model) to 1 (the fine-tuned model); the run always
            tests 0 and 1 as well.
        keep_alpha: interpolation weight of the model to save in addition to the fine-tuned model.
        evaluate_every_steps: number of steps between tests on the new task; None tests only at the end.
        collective_seconds: timeout in seconds of collective operations; tests in rank 0 may take longer.
        device: name of a device, such as cuda:1, mps or cpu; `auto` selects the best available device.

    Examples:
        >>> spec = FinetuneSpec(checkpoint="mobileclip_s2.pt", data="flowers/", epochs=3)
        >>> spec.batch_of(num_samples=1_000), spec.finetuning.batch_norm
        (64, 'frozen')
    """

    checkpoint: str | None = None
    model: str | None = None
    data: str | None = None
    rows: OmitArgPrefixes[RowOptions] = attrs.field(factory=RowOptions)
    kind: Kind = attrs.field(default="auto", validator=validators.in_(get_args(Kind)))
    test: str | None = None
    held_out: float = attrs.field(default=0.1, validator=[validators.gt(0), validators.lt(1)])
    retention_tasks: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    output: Path = Path("outputs/finetune")
    batch_norm: BatchNormMode = attrs.field(default="frozen", validator=validators.in_(get_args(BatchNormMode)))
    freeze: tuple[Tower, ...] = ()
    rate_decay: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])
    rate_layers: Granularity = attrs.field(default="block", validator=validators.in_(get_args(Granularity)))
    lora_rank: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    lora_extras: tuple[str, ...] = ("logit_scale",)
    epochs: int = attrs.field(default=10, validator=validators.gt(0))
    batch_size: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(1)))
    learning_rate: float = attrs.field(default=1e-5, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.1, validator=validators.ge(0))
    warmup_share: float = attrs.field(default=0.05, validator=[validators.ge(0), validators.lt(1)])
    max_gradient_norm: float = attrs.field(default=1.0, validator=validators.gt(0))
    precision: Literal["float32", "bfloat16"] = attrs.field(
        default="float32", validator=validators.in_(("float32", "bfloat16"))
    )
    num_workers: int = attrs.field(default=0, validator=validators.ge(0))
    seed: int = attrs.field(default=0, validator=validators.ge(0))
    alphas: tuple[float, ...] = attrs.field(default=(0.0, 0.25, 0.5, 0.75, 1.0), converter=_alphas, validator=_fraction)
    keep_alpha: float = attrs.field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    evaluate_every_steps: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    collective_seconds: float = attrs.field(default=COLLECTIVE_SECONDS, validator=validators.gt(0), eq=False)
    device: str = attrs.field(default=AUTO, eq=False)

    @property
    def finetuning(self) -> FinetuningSpec:
        """The settings of frozen towers, batch norms and adapters."""
        lora = None if self.lora_rank is None else LoraSpec(rank=self.lora_rank, extras=self.lora_extras)
        return FinetuningSpec(batch_norm=self.batch_norm, frozen_towers=self.freeze, lora=lora)

    @property
    def optimizer(self) -> OptimizerSpec:
        """The optimiser; with `rate_decay` below 1, learning rates decrease towards the input."""
        if self.rate_decay == 1:
            return AdamWSpec(beta2=0.999, weight_decay=self.weight_decay)
        return LayerDecayAdamWSpec(
            beta2=0.999, weight_decay=self.weight_decay, rate_decay=self.rate_decay, rate_layers=self.rate_layers
        )

    def batch_of(self, num_samples: int, num_processes: int = 1) -> int:
        """Return `batch_size`; if None, return a default for the number of images, divisible by `num_processes`."""
        if self.batch_size is not None:
            return self.batch_size
        most = min(_BATCH_SIZE, num_samples)
        return max(2, most - most % num_processes)

    def training(self, loss: LossSpec, *, num_samples: int) -> TrainingSpec:
        """Return the training spec for a given number of images.

        Raises:
            ValueError: if `num_samples` is smaller than the batch size.
        """
        batch_size = self.batch_of(num_samples)
        per_epoch = num_samples // batch_size
        if per_epoch == 0:
            raise ValueError(
                f"{num_samples} training images are fewer than a batch of {batch_size}; choose a smaller --batch-size"
            )
        steps = per_epoch * self.epochs
        warmup = min(round(self.warmup_share * steps), steps - 1)
        return TrainingSpec(
            loss=loss,
            schedule=CosineSchedule(peak=self.learning_rate, final=0.0, warmup_steps=warmup, total_steps=steps),
            optimizer=self.optimizer,
            max_gradient_norm=self.max_gradient_norm,
            ema_decay=None,
            precision=self.precision,
            seed=self.seed,
            checkpoint_every_steps=max(1, per_epoch),
            evaluate_every_steps=self.evaluate_every_steps,
            collective_seconds=self.collective_seconds,
        )

    def pipeline(
        self, shards: tuple[str, ...], model: DualEncoderSpec, *, num_samples: int, batch_size: int
    ) -> ReinforcedPipelineSpec:
        """Return the data pipeline of one process; every epoch samples a weak crop and a caption for each image."""
        image = model.image.input
        return ReinforcedPipelineSpec(
            shards=shards,
            batch_size=batch_size,
            image=image,
            text=model.text.input,
            reinforced=False,
            augmentation=attrs.evolve(crop_augmentation(image.size), interpolation=image.interpolation),
            seed=self.seed,
            num_workers=self.num_workers,
            num_samples=num_samples,
        )

"""Training options of a run, stored in checkpoints; interfaces of student and data specs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import attrs
from attrs import validators
from torch import nn

from mobileclip.data import (
    Batch,
    BatchSource,
    RangeAugmentSpec,
    ReinforcedPipelineSpec,
    TextPipelineSpec,
)
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import ClassifierSpec, CoCaSpec, DualEncoderSpec
from mobileclip.hardware import TRAINING_PRECISIONS, TrainingPrecision
from mobileclip.losses import LossSpec, ReinforcedLossSpec
from mobileclip.registry import Registry
from mobileclip.serialization import register_spec_base
from mobileclip.strict import strict
from mobileclip.training.distributed import COLLECTIVE_SECONDS
from mobileclip.training.optimizer import AdamWSpec, OptimizerSpec
from mobileclip.training.selection import SelectionSpec


@attrs.frozen(kw_only=True, field_transformer=strict)
class Schedule(ABC):
    """Base class of schedules: linear warm-up, `peak * (s + 1) / w` at step `s < w`, then the curve of a subclass.

    Args:
        total_steps: number of steps of the whole run, `n`.
        peak: highest learning rate.
        final: learning rate at the end; by default the lower of 1e-6 and `peak`.
        warmup_steps: number of warm-up steps, `w`; a value below 1 is a fraction of `total_steps`. The default is the
            smaller of 2,000 and a tenth of `total_steps`.

    Examples:
        >>> class FlatSchedule(Schedule):
        ...     def _after_warmup(self, step: int) -> float:
        ...         return self.peak
        >>> [FlatSchedule(total_steps=40, peak=1.0).learning_rate(step) for step in (0, 1, 3, 39)]
        [0.25, 0.5, 1.0, 1.0]
    """

    total_steps: int = attrs.field(validator=validators.gt(0))
    peak: float = attrs.field(default=1e-3, validator=validators.gt(0))
    final: float = attrs.field(
        default=attrs.Factory(lambda own: default_final(own.peak), takes_self=True), validator=validators.ge(0)
    )
    warmup_steps: int | float = attrs.field(
        default=attrs.Factory(lambda own: default_warmup(own.total_steps), takes_self=True), validator=validators.ge(0)
    )

    def __attrs_post_init__(self) -> None:
        """Check that the numbers are a valid schedule."""
        if self._warmup >= self.total_steps:
            raise ValueError(
                f"warmup_steps ({self._warmup}) must be below total_steps ({self.total_steps}); otherwise the learning "
                "rate never falls"
            )
        if self.final > self.peak:
            raise ValueError(f"final ({self.final}) must not exceed peak ({self.peak})")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0; cosine schedules stay at `final` after the end."""
        if step < self._warmup:
            return self.peak * (step + 1) / self._warmup
        return self._after_warmup(step)

    @property
    def _warmup(self) -> int:
        return steps_of(self.warmup_steps, self.total_steps)

    @abstractmethod
    def _after_warmup(self, step: int) -> float:
        """Return the learning rate of a step after the warm-up."""

    def _cosine(self, step: int, start: int) -> float:
        done = min(1.0, (step - start) / (self.total_steps - start))
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * done)) / 2


def default_warmup(total_steps: int, most: int = 2_000) -> int:
    """Return the default number of warm-up steps: a tenth of the run, at most `most`."""
    return min(most, total_steps // 10)


def steps_of(given: float, total_steps: int) -> int:
    """Return `given` as a number of steps; a value below 1 is a fraction of `total_steps`."""
    return int(given) if given >= 1 else round(given * total_steps)


def default_final(peak: float, most: float = 1e-6) -> float:
    """Return the default final learning rate: the lower of `most` and the peak."""
    return min(most, peak)


schedules: Registry[type[Schedule]] = Registry("schedule")
"""Schedules by name; other packages register schedules here or with an entry point in `mobileclip.schedule`."""
register_spec_base(Schedule, schedules)


@schedules.register("cosine")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CosineSchedule(Schedule):
    """A schedule that rises linearly to the peak in `warmup_steps`, then falls to `final` along half a cosine.

    After `w` warm-up steps, step `s` of `n` has the rate `final + (peak - final) (1 + cos(pi (s - w) / (n - w))) / 2`.

    Source: MobileCLIP, table 12.

    Examples:
        >>> schedule = CosineSchedule(total_steps=100, peak=1.0, final=0.0, warmup_steps=10)
        >>> [round(schedule.learning_rate(step), 3) for step in (0, 9, 55, 100)]
        [0.1, 1.0, 0.5, 0.0]
    """

    def _after_warmup(self, step: int) -> float:
        return self._cosine(step, self._warmup)


@schedules.register("constant_cosine")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ConstantCosineSchedule(Schedule):
    """A schedule for long training: linear warm-up to the peak, a constant phase, then half a cosine to `final`.

    Runs with decays of different lengths can share one constant phase, because this phase does not depend on the decay.

    Args:
        constant_steps: number of steps before the decay, including the warm-up; a value below 1 is a fraction of
            `total_steps`. The default is half of the run.

    Source: MobileCLIP, table 12, B (LT): 300k constant steps, 300k cosine steps.

    Examples:
        >>> schedule = ConstantCosineSchedule(total_steps=100, peak=1.0, final=0.0, constant_steps=50)
        >>> [round(schedule.learning_rate(step), 3) for step in (0, 49, 75, 100)]
        [0.1, 1.0, 0.5, 0.0]
    """

    constant_steps: int | float = attrs.field(default=0.5, validator=validators.ge(0))
    # Placed after the field that it depends on.
    warmup_steps: int | float = attrs.field(
        default=attrs.Factory(
            lambda own: min(default_warmup(own.total_steps), steps_of(own.constant_steps, own.total_steps)),
            takes_self=True,
        ),
        validator=validators.ge(0),
    )

    def __attrs_post_init__(self) -> None:
        """Check that the numbers are a valid schedule."""
        Schedule.__attrs_post_init__(self)
        if not self._warmup <= self._constant < self.total_steps:
            raise ValueError(
                f"constant_steps ({self._constant}) must be at least warmup_steps ({self._warmup}) and below "
                f"total_steps ({self.total_steps})"
            )

    def _after_warmup(self, step: int) -> float:
        return self.peak if step < self._constant else self._cosine(step, self._constant)

    @property
    def _constant(self) -> int:
        return steps_of(self.constant_steps, self.total_steps)


@runtime_checkable
class StudentSpec(Protocol):
    """Interface of a student's spec, an attrs class with an `image.input` and a `text.input` that match the data.

    Register your own spec class in `students`, or define it at the top level of an imported module.

    Examples:
        >>> isinstance(mobileclip.specs.mobileclip_s0(), StudentSpec)
        True
    """

    def build(self) -> nn.Module:
        """Return a new model that has a `spec` and the methods required by the run's objective."""


@runtime_checkable
class DataSpec(Protocol):
    """Interface of a data spec, an attrs class with an `image` and a `text` that match the student's inputs.

    Register your own spec class in `pipelines`, or define it at the top level of an imported module.

    Examples:
        >>> from mobileclip.data import ReinforcedPipelineSpec
        >>> image = mobileclip.inputs.ImageInput(size=256)
        >>> isinstance(ReinforcedPipelineSpec(shards="a.tar", batch_size=8, image=image), DataSpec)
        True
    """

    @property
    def batch_size(self) -> int:
        """Number of samples per step, over all processes; `run` builds the data with the share of one process."""

    def build(self) -> BatchSource[Batch]:
        """Return the batches of this process."""


students: Registry[type[StudentSpec]] = Registry("student")
"""Specs of models to train, by name; other packages register here or with an entry point in `mobileclip.student`."""
pipelines: Registry[type[DataSpec]] = Registry("pipeline")
"""Specs of training data, by name; other packages register here or with an entry point in `mobileclip.pipeline`."""

register_spec_base(StudentSpec, students, own=(DualEncoderSpec, ClassifierSpec, CoCaSpec))
register_spec_base(DataSpec, pipelines, own=(ReinforcedPipelineSpec, LabelledPipelineSpec, TextPipelineSpec))

if TYPE_CHECKING:
    # So that type checkers know the other attributes of the library's own specs.
    Student: TypeAlias = DualEncoderSpec | Any
    Data: TypeAlias = ReinforcedPipelineSpec | Any
else:
    Student, Data = StudentSpec, DataSpec


Compile = Literal["towers", "step"]
COMPILED: tuple[Compile, ...] = ("towers", "step")


@attrs.frozen(kw_only=True, field_transformer=strict)
class Memory:
    """Options for less activation memory: the backward pass recomputes activations that the step does not store.

    With both `micro_batch` and `recompute`, each block runs forward three times per step.

    Args:
        micro_batch: number of images or texts per forward pass of a tower; None for the whole batch. The step stores
            only the towers' outputs, and encodes each micro-batch again in the backward pass. The loss sees the whole
            batch; batch norms see one micro-batch at a time.
        recompute: whether to use activation checkpointing, which stores only the inputs of blocks and runs each block
            again in the backward pass.

    Raises:
        ValueError: if `micro_batch` is below 1.
    """

    micro_batch: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    recompute: bool = False


@attrs.frozen(kw_only=True, field_transformer=strict)
class TrainingSpec:
    """The options of a training run, except for model and data.

    Equality ignores the last seven fields (from `log_every_steps`), which do not change the trained weights.

    Args:
        loss: spec of the loss; the spec's class also selects the objective (see `build_objective`).
        schedule: learning-rate schedule; the schedule's `total_steps` is the length of the run.
        optimizer: spec of the optimiser; AdamW by default.
        max_gradient_norm: maximum norm of the gradient, for gradient clipping; None for no clipping.
        min_logit_scale: minimum of `exp(logit_scale)`; None for no minimum. The model's spec has the maximum. The scale
            starts at 1 / 0.07, and falls below 1 only in failing runs.
        ema_decay: decay per step of the weights' moving average, in [0, 1); None for no average.
        precision: `float32`; or `bfloat16` or `float16` to run the towers' convolutions and matrix products in
            autocast. Norm statistics, softmax sums, embedding norms, logits, loss, weights, gradients, optimiser state
            and moving average stay in float32. With `float16`, the run also scales the loss, and skips steps with an
            overflowing gradient without logging metrics for these steps.
        memory: options that reduce activation memory; by default, a step stores all activations.
        channels_last: whether convolutions use the channels-last memory format, which is faster on a GPU; not allowed
            on the CPU, where convolutional stems always use this format.
        compile: `towers` compiles each tower with torch.compile, `step` compiles everything from pixels to the loss,
            and None is eager mode. Compilation takes minutes.
        range_augment: spec of RangeAugment, which changes brightness, contrast and noise of the student's images with
            learnt strengths; None for no RangeAugment. RangeAugment processes one micro-batch at a time, but the whole
            batch in a compiled step.
        selection: settings for training only on the pairs of each batch that are harder for the student than for the
            teachers. The data's `batch_size` is the size before selection.
        seed: random seed of the model and the training steps; the data has a separate seed.
        log_every_steps: number of steps between two lines of metrics.
        checkpoint_every_steps: number of steps between two checkpoints; the last step always writes a checkpoint.
        checkpoint_every_minutes: time in minutes between two checkpoints, by rank 0's clock.
        keep_checkpoints: number of newest checkpoints to keep.
        evaluate_every_steps: number of steps between two evaluations; None evaluates only at the end.
        tensorboard: whether to write the metrics for TensorBoard as well; needs the extra `tensorboard`.
        collective_seconds: timeout in seconds of collective operations within a step. Rank 0's own work,
            such as evaluation, may take longer.

    Source: MobileCLIP, table 12.

    Examples:
        >>> from mobileclip.losses import ReinforcedLossSpec
        >>> choices = {"loss": ReinforcedLossSpec(), "schedule": CosineSchedule(total_steps=200_000)}
        >>> TrainingSpec(**choices) == TrainingSpec(**choices, log_every_steps=100)
        True
    """

    loss: LossSpec
    schedule: Schedule
    optimizer: OptimizerSpec = attrs.field(factory=AdamWSpec)
    max_gradient_norm: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    min_logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    ema_decay: float | None = attrs.field(default=0.9995)
    precision: TrainingPrecision = attrs.field(default="float32", validator=validators.in_(TRAINING_PRECISIONS))
    memory: Memory = attrs.field(factory=Memory)
    channels_last: bool = False
    compile: Compile | None = attrs.field(default=None, validator=validators.optional(validators.in_(COMPILED)))
    range_augment: RangeAugmentSpec | None = None
    selection: SelectionSpec = attrs.field(factory=SelectionSpec)
    seed: int = attrs.field(default=0, validator=validators.ge(0))
    log_every_steps: int = attrs.field(default=10, validator=validators.gt(0), eq=False)
    checkpoint_every_steps: int = attrs.field(default=1000, validator=validators.gt(0), eq=False)
    checkpoint_every_minutes: float = attrs.field(default=10.0, validator=validators.gt(0), eq=False)
    keep_checkpoints: int = attrs.field(default=2, validator=validators.gt(0), eq=False)
    evaluate_every_steps: int | None = attrs.field(
        default=None, validator=validators.optional(validators.gt(0)), eq=False
    )
    tensorboard: bool = attrs.field(default=False, eq=False)
    collective_seconds: float = attrs.field(default=COLLECTIVE_SECONDS, validator=validators.gt(0), eq=False)

    @ema_decay.validator
    def _check_ema_decay(self, _: object, value: float | None) -> None:
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"ema_decay must be in [0, 1), or None for no average; got {value}")

    @selection.validator
    def _check_selection(self, _: object, value: SelectionSpec) -> None:
        if value.is_active and not (isinstance(self.loss, ReinforcedLossSpec) and self.loss.teacher_dims):
            raise ValueError(
                f"selection compares the student with teachers, but the loss has no teacher_dims ({self.loss}); use "
                "ReinforcedLossSpec with the teacher_dims of the data, and distill_weight=0 for no distillation"
            )

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        return self.schedule.total_steps

"""How a run trains: one value, saved with its checkpoints and compared when it resumes."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs import validators

from mobileclip.data import RangeAugmentSpec
from mobileclip.hardware.precision import TRAINING_PRECISIONS, TrainingPrecision
from mobileclip.losses import LossSpec, ReinforcedLossSpec
from mobileclip.strict import strict
from mobileclip.training.distributed import COLLECTIVE_SECONDS
from mobileclip.training.optimizer import AdamWSpec, OptimizerSpec
from mobileclip.training.schedule import Schedule
from mobileclip.training.selection import SelectionSpec

Compile = Literal["towers", "step"]
COMPILED: tuple[Compile, ...] = ("towers", "step")


@attrs.frozen(kw_only=True, field_transformer=strict)
class Memory:
    """What a training step keeps of the forward pass; what it does not keep is computed again in the backward pass.

    With both, each block runs forward three times.

    Args:
        micro_batch: images, or texts, that a tower encodes at once; None for all of a process. The towers' outputs are
            kept, and each micro-batch is encoded a second time in the backward pass. The loss sees the whole batch;
            batch norms see one micro-batch at a time.
        recompute: whether the inputs of blocks alone are kept, and each block runs a second time in the backward pass.

    Raises:
        ValueError: if the micro-batch is below 1.
    """

    micro_batch: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    recompute: bool = False


@attrs.frozen(kw_only=True, field_transformer=strict)
class TrainingSpec:
    """The choices of a training run, apart from its model and data.

    Specs that differ in the last seven fields alone are equal: they decide what is written or waited for, not what is
    trained.

    Args:
        loss: what is minimised.
        schedule: learning rate by step; its `total_steps` is the length of the run.
        optimizer: AdamW's constants.
        max_gradient_norm: gradients are scaled down to this norm; none leaves them as they are.
        min_logit_scale: floor of the logit scale, after the exponential; none leaves it. The model's spec has
            the cap. It starts at 1 / 0.07, and falls below 1 in runs that fail alone.
        ema_decay: decay of the moving average of the weights per step; none keeps no average.
        precision: `bfloat16` computes the towers' convolutions and products in it, by autocast. In float32 stay the
            statistics of norms, the sums of softmax, the embeddings' lengths, logits and loss, and what is kept:
            weights, gradients, the optimiser's state, the moving average. `float16` does so with a scaled loss; steps
            whose gradient overflows are left out, and are not logged.
        memory: what a step keeps of the forward pass; everything, by default.
        channels_last: memory format of convolutions, the faster one on a GPU; refused on the CPU, where convolutional
            stems take it by themselves.
        compile: what torch.compile builds kernels for: the `towers`, each by itself, or the `step`, from pixels to the
            loss as one, so that scaling pixels and scaling embeddings go into their neighbours. It takes minutes at the
            start; none computes as the code is written.
        range_augment: brightness, contrast and noise of learnt strength on the student's images alone: per micro-batch
            as they are encoded, all at once where the step is compiled; none leaves the images as the data has them.
        selection: what share of every batch is learned from, and chosen how: pairs that the student finds harder than
            its teachers do. The data's `batch_size` is that of the batch that is chosen from.
        seed: of everything random in the model; the data has its own.
        log_every_steps: steps between two lines of metrics.
        checkpoint_every_steps: steps between two checkpoints; the last step always writes one.
        checkpoint_every_minutes: minutes after which a checkpoint is written too, by the first process's clock.
        keep_checkpoints: how many of the newest checkpoints are kept.
        evaluate_every_steps: steps between two evaluations, where the run has any; none for at the end alone.
        tensorboard: write the metrics for TensorBoard too; needs the extra `tensorboard`.
        collective_seconds: for which processes wait for each other within a step. What the first one does alone, such
            as evaluating, may take longer.

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
            raise ValueError(f"ema_decay must lie in [0, 1), or be none for no average; got {value}")

    @selection.validator
    def _check_selection(self, _: object, value: SelectionSpec) -> None:
        if value.leaves_some and not (isinstance(self.loss, ReinforcedLossSpec) and self.loss.teacher_dims):
            raise ValueError(
                f"selection compares the student with teachers, and the loss has no teacher_dims ({self.loss}); take "
                "ReinforcedLossSpec with those of the data, and distill_weight=0 if nothing is to be distilled"
            )

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.schedule.total_steps

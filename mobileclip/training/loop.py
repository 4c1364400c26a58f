"""The training loop: one process, on the CPU or one GPU, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from mobileclip.data import ReinforcedBatch
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.progress import Progress
from mobileclip.training.checkpoint import RunState
from mobileclip.training.ema import MovingAverage
from mobileclip.training.metrics import MetricLog

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from torch import Tensor

    from mobileclip.data import ReinforcementCard
    from mobileclip.encoders import DualEncoder
    from mobileclip.training.spec import TrainingSpec

BatchSource = Callable[[int], Iterable[ReinforcedBatch]]


@attrs.frozen(kw_only=True)
class TrainingResult:
    """What a run leaves.

    Args:
        model: the trained student, in evaluation mode: the moving average where the run keeps one.
        num_steps: steps that this call made; fewer than the run's where it resumed.
    """

    model: nn.Module
    num_steps: int


def train(
    spec: TrainingSpec,
    *,
    model: DualEncoder,
    batches: BatchSource,
    output: Path,
    card: ReinforcementCard | None = None,
    device: str | torch.device = "cpu",
    title: str = "train",
    console: Console | None = None,
) -> TrainingResult:
    """Train `model` on named batches; go on from the checkpoint in `output`, if there is one.

    On the CPU, a run that is killed and resumed gives the same losses and weights, to the bit, as one that is not.

    Args:
        spec: how to train.
        model: the student; trained in place.
        batches: called with the first step to make, returns the batches from there on, the same ones every time:
            `ReinforcedPipeline.stream`.
        output: folder of `metrics.jsonl` and `checkpoint.safetensors`; created.
        card: of the reinforced data, where it has one: the loss must have the teachers that it names.
        device: where to train.
        title: what progress is shown under.
        console: where progress is shown; none shows nothing.

    Raises:
        ValueError: if the loss has other teachers than the data, the checkpoint is another run's, the batches end too
            early or lack what the loss needs, or `channels_last` is asked for on the CPU.
        FloatingPointError: if the loss is not finite; the message has the step and the batch's keys. The weights are
            those from before the step.
    """
    if card is not None and isinstance(spec.loss, ReinforcedLossSpec):
        card.check_teachers(spec.loss.teacher_dims, spec.loss.teacher_logit_scales)
    device = torch.device(device)
    _place(model, device, spec)
    torch.manual_seed(spec.seed)
    loss = spec.loss.build()
    optimizer = spec.optimizer.build(model)
    average = None if spec.ema_decay is None else MovingAverage(model, spec.ema_decay)
    state = RunState(model=model, optimizer=optimizer, average=average)

    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.safetensors"
    first = state.restore(checkpoint, spec=spec, model_spec=model.spec) if checkpoint.exists() else 0
    log = MetricLog(output / "metrics.jsonl", resume_step=first)
    steps = range(first, spec.total_steps)
    source = iter(batches(first)) if steps else iter(())

    with Progress(title, total=spec.total_steps, done=first, console=console) as progress:
        for step in steps:
            started = time.perf_counter()
            batch = _next_batch(source, step, spec).to(device, non_blocking=True)
            waited = time.perf_counter() - started

            terms = loss(**_forward(model, batch, spec))
            total = _finite(terms.total, step, batch)
            learning_rate = spec.schedule.learning_rate(step)
            norm = _update(model, optimizer, terms.total, learning_rate, spec)
            if average is not None:
                average.update(model)

            done = step + 1
            progress.advance(count=len(batch), detail=f"loss {total:.3f}")
            if done % spec.log_every_steps == 0 or done == spec.total_steps:
                log.write(
                    step,
                    {
                        "loss": total,
                        "contrastive": terms.contrastive.item(),
                        "distillation": terms.distillation.item(),
                        "logit_scale": model.logit_scale.exp().item(),
                        "gradient_norm": norm.item(),
                        "learning_rate": learning_rate,
                        "seconds": time.perf_counter() - started,
                        "seconds_waiting": waited,
                    },
                )
            if done % spec.checkpoint_every_steps == 0 or done == spec.total_steps:
                state.save(checkpoint, spec=spec, model_spec=model.spec, step=done)

    return TrainingResult(model=(model if average is None else average.module).eval(), num_steps=len(steps))


def _place(model: DualEncoder, device: torch.device, spec: TrainingSpec) -> None:
    if spec.channels_last and device.type == "cpu":
        raise ValueError("channels_last is for GPUs: on the CPU, oneDNN crashes in the stem's backward pass")
    model.to(device).train()
    if spec.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _next_batch(source: Iterator[ReinforcedBatch], step: int, spec: TrainingSpec) -> ReinforcedBatch:
    batch = next(source, None)
    if batch is None:
        raise ValueError(f"the batches ended at step {step} of {spec.total_steps}; let them go round")
    return batch


def _finite(loss: Tensor, step: int, batch: ReinforcedBatch) -> float:
    total = loss.item()
    if not math.isfinite(total):
        raise FloatingPointError(
            f"the loss is {total} at step {step}; the batch's keys are {list(batch.keys)}. Try a lower "
            f"learning rate, a longer warm-up or max_gradient_norm=1"
        )
    return total


def _update(
    model: DualEncoder, optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float, spec: TrainingSpec
) -> Tensor:
    """Make one optimiser step, and return the gradient's norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_gradient_norm or math.inf)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(spec.max_logit_scale))
    return norm


def _forward(model: DualEncoder, batch: ReinforcedBatch, spec: TrainingSpec) -> dict[str, Tensor]:
    """Return the loss's arguments: the student's embeddings, its scale, and the teachers' embeddings it needs."""
    tensors = {name: value for name, value in batch.as_dict().items() if name != "keys"}
    teachers = {name: value for name, value in tensors.items() if name.startswith("teacher_")}
    if spec.loss.needs_teachers and not teachers:
        raise ValueError(f"{type(spec.loss).__name__} needs teachers' embeddings, but the batches hold {list(tensors)}")
    image = tensors["image"]
    if spec.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    # Real and synthetic captions go through the text tower together: one batch of twice the size.
    names = [name for name in ("text", "syn_text") if name in tensors]
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=spec.precision == "bfloat16"):
        image_embedding = model.encode_image(image, normalize=True)
        text_embedding = model.encode_text(torch.cat([tensors[name] for name in names]), normalize=True)
    return {
        "image": image_embedding.float(),
        **dict(zip(names, text_embedding.float().chunk(len(names)), strict=True)),
        "logit_scale": model.logit_scale.exp(),
        **(teachers if spec.loss.needs_teachers else {}),
    }

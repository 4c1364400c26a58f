"""A training step of mobileclip against open_clip: same model, weights, batch, precision and loss, in one run.

Command:   python -m benchmarks train             (needs the extra `test`)
           python -m benchmarks train --device cuda --precision bfloat16 --batch-size 256 --channels-last
Hardware:  any CPU, without other programs; the quartiles show the uncertainty of the medians. With --device cuda, one
           GPU
Time:      two and a half minutes on two cores, two thirds of this time for S2
Result:    a table: samples per second of both sides, the ratio mobileclip / open_clip (above 1: mobileclip is faster)
           of time and of CPU time, the quartiles of the ratios, and MiB: on the CPU, the memory that a forward pass
           keeps for the backward pass; on a GPU, the peak memory of a step above weights and optimiser state, which are
           equal for both sides

A step has a forward pass, contrastive loss, backward pass and AdamW. One side is `mobileclip.training`; the other side
is open_clip's model and loss with the optimiser of open_clip's training. Before the first step, both sides must have
the same loss and the same gradient of the images. The steps of the sides alternate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from benchmarks.harness import (
    Bench,
    Case,
    Row,
    Value,
    clocked,
    in_turn,
    peak,
    ratio,
    require,
    spread,
    start_peak,
)
from benchmarks.rivals import PUBLISHED, Size, example, open_clip_model
from mobileclip.data import ReinforcedBatch
from mobileclip.encoders import DualEncoder
from mobileclip.hardware import WidePrecision
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec
from mobileclip.training.distributed import World
from mobileclip.training.objectives import ImageTextObjective
from mobileclip.training.optimizer import set_learning_rate
from mobileclip.training.spec import COMPILED, Compile

LEARNING_RATE = 1e-5
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 0.1}


@attrs.frozen(kw_only=True)
class TrainBenchSpec(Bench):
    """Settings of the comparison.

    Args:
        models: names of the models.
        batch_size: number of images and of texts per step.
        rounds: number of timed steps per side, after a warm-up step.
        precision: precision of both forward passes; `bfloat16` uses autocast.
        device: device to compute on.
        channels_last: whether to store images and kernels of both sides in channels-last layout, on a GPU only. On the
            CPU, this library selects the layout itself, and open_clip crashes in oneDNN.
        compile: part of mobileclip's side for torch.compile; open_clip's side then compiles the whole model, like
            open_clip's training. None runs both sides in eager mode.
        seed: seed of the weights and the inputs.
    """

    models: tuple[Size, ...] = ("s0", "s2")
    batch_size: int = attrs.field(default=16, validator=validators.gt(1))
    rounds: int = attrs.field(default=6, validator=validators.gt(1))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(("float32", "bfloat16")))
    device: Literal["cpu", "cuda"] = "cpu"
    channels_last: bool = False
    compile: Compile | None = attrs.field(default=None, validator=validators.optional(validators.in_(COMPILED)))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"models": ("s0",), "batch_size": 2, "rounds": 2}
    selects: ClassVar[frozenset[str]] = frozenset(("models",))

    def __attrs_post_init__(self) -> None:
        """Check that the device can train in the layout."""
        if self.channels_last and self.device == "cpu":
            raise ValueError(
                "channels_last needs --device cuda: on the CPU, open_clip's models crash in oneDNN in this layout"
            )

    def cases(self) -> Iterator[Case]:
        """Yield every model."""
        require("timm", "open_clip")
        for size in self.models:
            yield Case(labels={"model": size}, measure=partial(measure, self, size))


@attrs.frozen
class Side:
    """One of the two models with everything for a training step.

    Args:
        loss: function that runs the forward pass and the loss, on images that may require gradients.
        optimizer: optimiser of all parameters.
    """

    loss: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, images: Tensor) -> None:
        """Train for one step."""
        self.optimizer.zero_grad()
        self.loss(images).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def start(self, images: Tensor) -> tuple[float, Tensor]:
        """Return the loss and the images' gradient; weights stay unchanged, running statistics advance by one batch."""
        own = images.clone().requires_grad_()
        loss = self.loss(own)
        (gradient,) = torch.autograd.grad(loss, own)
        return loss.item(), gradient


def mobileclip_side(model: DualEncoder, texts: Tensor, spec: TrainBenchSpec) -> Side:
    """Return this library's model, set up like in `mobileclip.training`."""
    training = TrainingSpec(
        loss=ContrastiveLossSpec(),
        schedule=CosineSchedule(peak=LEARNING_RATE, total_steps=1, warmup_steps=0),
        optimizer=AdamWSpec(),
        precision=spec.precision,
        channels_last=spec.channels_last,
        compile=spec.compile,
    )
    objective = ImageTextObjective(training, model=model, world=World(device=spec.device))
    optimizer = training.optimizer.build(objective)
    set_learning_rate(optimizer, LEARNING_RATE)
    keys = tuple(map(str, range(len(texts))))
    return Side(lambda images: objective(ReinforcedBatch(keys=keys, image=images, text=texts))[2], optimizer)


def open_clip_side(model: nn.Module, texts: Tensor, spec: TrainBenchSpec) -> Side:
    """Return open_clip's model, set up like in `open_clip_train`."""
    from open_clip import ClipLoss  # type: ignore[import-untyped]

    model.to(spec.device).train()
    if spec.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if spec.compile is not None:
        model.compile()
    contrastive = ClipLoss(cache_labels=True)

    def loss(images: Tensor) -> Tensor:
        with torch.autocast(spec.device, dtype=torch.bfloat16, enabled=spec.precision == "bfloat16"):
            total: Tensor = contrastive(*model(images, texts)[:3])
        return total

    kept = [p for name, p in model.named_parameters() if _is_kept_by_open_clip(name, p)]
    decayed = [p for name, p in model.named_parameters() if not _is_kept_by_open_clip(name, p)]
    optimizer = AdamWSpec()
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": optimizer.weight_decay}]
    return Side(
        loss, torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps)
    )


def _is_kept_by_open_clip(name: str, parameter: Tensor) -> bool:
    return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def compare(
    mobileclip: Side, open_clip: Side, images: Tensor, *, rounds: int, largest_error: float
) -> dict[str, Value]:
    """Return the duration of a step on both sides, measured in turn.

    Raises:
        ValueError: if the sides do not start with the same loss and gradient, and so are not the same model.
    """
    # Compile once, for the images of the steps, which require no gradient.
    with torch.compiler.set_stance("force_eager"):
        (loss, gradient), (other_loss, other_gradient) = (side.start(images) for side in (mobileclip, open_clip))
    error = float((gradient - other_gradient).norm() / other_gradient.norm())
    if not (abs(loss - other_loss) < largest_error * other_loss and error < largest_error):
        raise ValueError(
            f"the losses are {loss:.6f} and {other_loss:.6f}, the images' gradients differ by {error:.1e} of their "
            "norm; this is more than a rounding error"
        )
    sides = {"mobileclip": mobileclip, "open_clip": open_clip}
    memory = {f"{name} memory": Value(number=_memory(side, images) / 2**20, unit="MiB") for name, side in sides.items()}
    steps = {name: clocked(partial(side.step, images)) for name, side in sides.items()}
    taken = in_turn(steps, rounds=rounds)
    wall, cpu = ({name: [getattr(one, kind) for one in taken[name]] for name in taken} for kind in ("wall", "cpu"))
    return {
        **{name: spread([len(images) / one for one in wall[name]], "samples/s") for name in sides},
        "ratio": ratio(wall["open_clip"], wall["mobileclip"]),
        "CPU ratio": ratio(cpu["open_clip"], cpu["mobileclip"]),
        **memory,
        "error": Value(number=error),
    }


def _memory(side: Side, images: Tensor) -> int:
    """Return a step's peak memory above the persistent memory, in bytes; on the CPU, the tensors kept for backward."""
    if images.device.type == "cuda":
        side.step(images)  # the first step creates the optimiser state
        side.optimizer.zero_grad()
        held = start_peak("cuda")
        side.step(images)
        return peak("cuda") - held
    parameters = {
        parameter.untyped_storage().data_ptr() for group in side.optimizer.param_groups for parameter in group["params"]
    }
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side.step(images)
    return sum(kept.values())


def measure(spec: TrainBenchSpec, size: Size) -> list[Row]:
    """Return the comparison of a model."""
    torch.manual_seed(spec.seed)
    published = PUBLISHED[size]
    model = published.spec().build()
    rival = open_clip_model(published, model)
    inputs = {
        tower: example(model.spec, tower, batch_size=spec.batch_size, channels_last=spec.channels_last)
        for tower in ("image", "text")
    }
    images, texts = inputs["image"].to(spec.device), inputs["text"].to(spec.device)
    sides = mobileclip_side(model, texts, spec), open_clip_side(rival, texts, spec)
    return [Row(values=compare(*sides, images, rounds=spec.rounds, largest_error=LARGEST_ERROR[spec.precision]))]

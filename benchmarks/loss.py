"""The tiled reinforced loss against the dense loss, which keeps every matrix in memory as the research release does.

Command:   python -m benchmarks loss
Hardware:  any otherwise idle CPU with 6 GB of memory, or one GPU with --device cuda
Time:      about four minutes on two cores, half of this time for the large batch; --large-batch None skips the large
           batch
Result:    a table: seconds for forward and backward, the ratio tiled / dense (below 1: tiled is faster) and its
           quartiles, and the peak memory above the memory of the embeddings; docs/measured.md has results. The targets
           are 0.3 GiB and 0.8 of the time at batch 8192, and 1.5 GiB at 32768

A batch has the student's and two teachers' embeddings of images, real captions and synthetic captions. Each measurement
has its own process, because a process does not always return memory to the system. The two sides take turns, and must
return the same value. If other programs use the processor, threads wait for each other; then use `--threads 1`, and
compare CPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from benchmarks.harness import (
    Bench,
    Case,
    LostProcessError,
    Row,
    Seconds,
    Value,
    in_own_process,
    in_turn,
    peak,
    ratio,
    seconds_of,
    spread,
    start_peak,
)
from mobileclip.losses import LossTerms, ReinforcedLossSpec, dense_loss

Side = Literal["dense", "tiled"]
SIDES: tuple[Side, Side] = ("dense", "tiled")
LARGEST_ERROR = 1e-4


@attrs.frozen(kw_only=True)
class LossBenchSpec(Bench):
    """Settings of the comparison.

    Args:
        batch: number of pairs in the batch for both sides.
        large_batch: number of pairs in a batch for the tiled side only; None for no such batch.
        dim: width of the student's embeddings.
        teacher_dims: widths of the teachers' embeddings.
        contrastive_weight: weight of the contrastive term; 0.25 for B, 0 for the smaller models.
        syn_captions: whether each image has a synthetic caption in addition to the real caption.
        repeats: measurements of each side.
        device: device to compute on.
        seed: seed of the embeddings.
    """

    batch: int = attrs.field(default=8192, validator=validators.gt(1))
    large_batch: int | None = attrs.field(default=32768)
    dim: int = attrs.field(default=512, validator=validators.gt(0))
    teacher_dims: tuple[int, ...] = (768, 768)
    contrastive_weight: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    syn_captions: bool = True
    repeats: int = attrs.field(default=3, validator=validators.gt(0))
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"batch": 64, "large_batch": None, "repeats": 1}

    @large_batch.validator
    def _check_large_batch(self, _: object, value: int | None) -> None:
        if value is not None and value < 2:
            raise ValueError(f"large_batch must be at least 2, or None for no such batch, not {value}")

    @property
    def loss(self) -> ReinforcedLossSpec:
        """Spec of the loss that both sides compute."""
        return ReinforcedLossSpec(
            teacher_dims=self.teacher_dims,
            teacher_logit_scales=(100.0,) * len(self.teacher_dims),
            contrastive_weight=self.contrastive_weight,
            distill_weight=1 - self.contrastive_weight,
        )

    def cases(self) -> Iterator[Case]:
        """Yield both batches."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("no GPU is available; leave out --device cuda")
        if self.device == "cpu" and not Path("/proc/self/clear_refs").exists():
            raise SystemExit(
                "the peak memory of a process comes from /proc, so this benchmark needs Linux or --device cuda"
            )
        yield Case(labels={"batch": str(self.batch)}, measure=partial(compare, self, self.batch, SIDES))
        if self.large_batch is not None:
            only = attrs.evolve(self, repeats=1)
            large = self.large_batch
            yield Case(labels={"batch": str(large)}, measure=partial(compare, only, large, SIDES[1:]))


@attrs.frozen(kw_only=True)
class Measurement:
    """Time and memory of one forward and backward pass.

    Args:
        seconds: duration, and processor time of all threads.
        bytes: peak memory above the memory before the pass, including the gradients of the embeddings.
        value: the loss.
    """

    seconds: Seconds
    bytes: int
    value: float


def embeddings(spec: LossBenchSpec, batch: int) -> dict[str, Tensor]:
    """Return a batch of random unit-length embeddings; the student's embeddings require gradients."""
    torch.manual_seed(spec.seed)
    names = ("image", "text", "syn_text") if spec.syn_captions else ("image", "text")
    student = {name: unit(batch, (spec.dim,), spec.device).requires_grad_() for name in names}
    return student | {f"teacher_{name}": unit(batch, spec.teacher_dims, spec.device) for name in names}


def unit(batch: int, dims: tuple[int, ...], device: str) -> Tensor:
    """Return concatenated unit-length vectors, made in place so that no other memory is used."""
    made = torch.empty(batch, sum(dims), device=device).normal_()
    for rows in torch.split(made, 256):
        for part in torch.split(rows, list(dims), dim=1):
            part.div_(part.norm(dim=1, keepdim=True))
    return made


def forward(side: Side, spec: LossBenchSpec, inputs: dict[str, Tensor], scale: Tensor) -> LossTerms:
    """Return the loss, either way."""
    if side == "dense":
        return dense_loss(spec.loss, **inputs, logit_scale=scale)
    terms: LossTerms = spec.loss.build()(**inputs, logit_scale=scale)
    return terms


def measure(spec: LossBenchSpec, batch: int, side: Side) -> Measurement:
    """Return the time and memory of one pass; this function runs in its own process."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    scale = torch.tensor(100.0, device=spec.device, requires_grad=True)
    for _ in range(2):  # load threads, libraries and kernels before the measurement
        forward(side, spec, embeddings(spec, 64), scale).total.backward()  # type: ignore[no-untyped-call]
    inputs = embeddings(spec, batch)
    held = start_peak(spec.device)
    values = []

    def work() -> None:
        total = forward(side, spec, inputs, scale).total
        total.backward()  # type: ignore[no-untyped-call]
        values.append(total.item())  # waits for a GPU

    seconds = seconds_of(work)
    return Measurement(seconds=seconds, bytes=peak(spec.device) - held, value=values[0])


def compare(spec: LossBenchSpec, batch: int, sides: tuple[Side, ...]) -> list[Row]:
    """Return time and memory of each side, measured in separate processes; failures become notes.

    Raises:
        ValueError: if the losses of the sides differ by more than rounding, so that the times mean nothing.
    """
    values: dict[str, Value] = {}
    notes: dict[str, str] = {}
    wanted: dict[str, Callable[[], Measurement | str]] = {
        side: partial(_measure_apart, spec, batch, side) for side in sides
    }
    found: dict[str, list[Measurement]] = {}
    for side, tried in in_turn(wanted, rounds=spec.repeats).items():
        found[side] = [one for one in tried if isinstance(one, Measurement)]
        notes |= {side: one} if (one := next((each for each in tried if isinstance(each, str)), None)) else {}
    losses = [(side, one.value) for side, several in found.items() for one in several]
    for side, value in losses:
        if not abs(value - losses[0][1]) <= LARGEST_ERROR * abs(losses[0][1]):
            raise ValueError(
                f"{side} gives {value}, but {losses[0][0]} gave {losses[0][1]}; this is more than a rounding error"
            )
    for side, several in found.items():
        if several:
            memory = max(one.bytes for one in several)
            values[side] = spread([one.seconds.wall for one in several], "s")
            values[f"{side} CPU"] = spread([one.seconds.cpu for one in several], "s")
            values[f"{side} memory"] = Value(number=memory / 2**30, unit="GiB")
            values[f"{side} batch x batch matrices"] = Value(number=memory / (4 * batch**2))
    if all(len(found.get(side, ())) == spec.repeats for side in SIDES):
        seconds = {side: [one.seconds.wall for one in found[side]] for side in SIDES}
        values["tiled / dense"] = ratio(seconds["tiled"], seconds["dense"])
    return [Row(values=values, notes=notes, failure=None if values else "; ".join(notes.values()))]


def _measure_apart(spec: LossBenchSpec, batch: int, side: Side) -> Measurement | str:
    try:
        return in_own_process(measure, spec, batch, side)
    except LostProcessError as error:
        return str(error).partition(". ")[0]

"""The reinforced loss tile by tile against the same loss with every matrix held, as the research release holds them.

Command:   python -m benchmarks.loss
Hardware:  any CPU with nothing else to do, 6 GB of memory; or one GPU with --device cuda
Time:      about four minutes on two cores, half of them for the large batch; --large-batch None leaves that out
Result:    a table: seconds for forward and backward, the ratio tiled / dense (below 1: tiled is faster) and its range,
           and the peak of memory over that of the embeddings: at batch 8192 0.21 GiB (dense: 3.54) and, on two cores,
           0.52 of the time; 0.46 GiB at 32768. The aims are 0.3 GiB, 0.8 of the time on two cores, and 1.5 GiB

A batch has images, real and synthetic captions of the student and of two teachers. Each measurement is a process of
its own, because memory once taken is not always given back. The two sides alternate (dense, tiled, tiled, dense, ...),
so that a machine that slows down for a while slows both down. Both must give the same value. Where others compute on
the machine, threads wait for each other: `--threads 1` and the column of CPU seconds say what is left to trust.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from benchmarks.apart import in_own_process
from benchmarks.command_line import empty_table, main
from mobileclip.losses import LossTerms, ReinforcedLossSpec, dense_loss
from mobileclip.progress import track
from mobileclip.terminal import print_table

Side = Literal["dense", "tiled"]
GIB = 2**30
LARGEST_ERROR = 1e-4


@attrs.frozen(kw_only=True)
class LossBenchSpec:
    """What to compare, and how often.

    Args:
        batch: pairs of the batch that both sides take.
        large_batch: pairs of a batch that is measured tiled alone; None for no such batch.
        dim: dim of the student's embeddings.
        teacher_dims: dims of the teachers' embeddings.
        contrastive_weight: weight of the contrastive term; 0.25 for B, 0 for the smaller models.
        syn_captions: give each image a synthetic caption beside the real one.
        repeats: measurements of each side.
        threads: threads that PyTorch computes with; None for its own choice.
        device: where to compute.
        seed: of the embeddings.
    """

    batch: int = attrs.field(default=8192, validator=validators.gt(1))
    large_batch: int | None = attrs.field(default=32768)
    dim: int = attrs.field(default=512, validator=validators.gt(0))
    teacher_dims: tuple[int, ...] = (768, 768)
    contrastive_weight: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    syn_captions: bool = True
    repeats: int = attrs.field(default=3, validator=validators.gt(0))
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0

    @large_batch.validator
    def _check_large_batch(self, _: object, value: int | None) -> None:
        if value is not None and value < 2:
            raise ValueError(f"large_batch must be at least 2, or None for no such batch, not {value}")

    @property
    def loss(self) -> ReinforcedLossSpec:
        """The loss that both sides compute."""
        return ReinforcedLossSpec(
            teacher_dims=self.teacher_dims,
            teacher_logit_scales=(100.0,) * len(self.teacher_dims),
            contrastive_weight=self.contrastive_weight,
            distill_weight=1 - self.contrastive_weight,
        )


@attrs.frozen(kw_only=True)
class Measurement:
    """What one forward and backward pass took.

    Args:
        seconds: its duration.
        cpu_seconds: what all threads computed in that time; other processes hardly change it.
        bytes: the peak of memory over what was held before it, the embeddings' gradients included.
        value: the loss.
    """

    seconds: float
    cpu_seconds: float
    bytes: int
    value: float


def embeddings(spec: LossBenchSpec, batch: int) -> dict[str, Tensor]:
    """Return a batch of random unit-length embeddings; the student's want gradients."""
    torch.manual_seed(spec.seed)
    names = ("image", "text", "syn_text") if spec.syn_captions else ("image", "text")
    student = {name: unit(batch, (spec.dim,), spec.device).requires_grad_() for name in names}
    return student | {f"teacher_{name}": unit(batch, spec.teacher_dims, spec.device) for name in names}


def unit(batch: int, dims: tuple[int, ...], device: str) -> Tensor:
    """Return concatenated unit-length vectors, made in place so that nothing beside them is ever held."""
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


def measure(side: Side, spec: LossBenchSpec, batch: int) -> Measurement:
    """Return what one pass takes; for a process of its own."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    scale = torch.tensor(100.0, device=spec.device, requires_grad=True)
    for _ in range(2):  # threads, libraries and kernels are there before the clock starts
        forward(side, spec, embeddings(spec, 64), scale).total.backward()  # type: ignore[no-untyped-call]
    inputs = embeddings(spec, batch)
    held = start_peak(spec.device)
    start, cpu_start = time.perf_counter(), time.process_time()
    total = forward(side, spec, inputs, scale).total
    total.backward()  # type: ignore[no-untyped-call]
    value = total.item()  # waits for a GPU
    return Measurement(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start,
        bytes=peak(spec.device) - held,
        value=value,
    )


def start_peak(device: str) -> int:
    """Start to watch the peak of this process's memory, and return the bytes it holds now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Return the most bytes that this process held since `start_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(lines[field].split()[0])


def require_machine(spec: LossBenchSpec) -> None:
    """Leave with what is missing, before anything is measured."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is available: leave out --device cuda")
    if spec.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise SystemExit("the peak of a process's memory is read from /proc, so this needs Linux, or --device cuda")


def plan(spec: LossBenchSpec) -> list[tuple[Side, int]]:
    """Return all measurements, in turn: side and batch."""
    order: list[tuple[Side, int]] = []
    for index in range(spec.repeats):
        sides: tuple[Side, Side] = ("dense", "tiled") if index % 2 == 0 else ("tiled", "dense")
        order += [(side, spec.batch) for side in sides]
    return order if spec.large_batch is None else [*order, ("tiled", spec.large_batch)]


def measurements(spec: LossBenchSpec) -> Iterator[tuple[Side, int, Measurement]]:
    """Yield the measurements.

    Raises:
        ValueError: if the sides' losses differ by more than rounding: then the times mean nothing.
    """
    values: dict[int, float] = {}
    for side, batch in plan(spec):
        result = in_own_process(measure, side, spec, batch)
        expected = values.setdefault(batch, result.value)
        if not abs(result.value - expected) <= LARGEST_ERROR * abs(expected):
            raise ValueError(
                f"{side} gives {result.value} where {expected} was given before, which is no rounding error"
            )
        yield side, batch, result


def run(spec: LossBenchSpec) -> None:
    """Measure, with a bar for how far it is, and print the table."""
    require_machine(spec)
    results: dict[tuple[Side, int], list[Measurement]] = {}
    total = len(plan(spec))
    for side, batch, result in track(measurements(spec), total=total, title="measuring", unit="passes"):
        results.setdefault((side, batch), []).append(result)
    where = f"CPU threads: {spec.threads or torch.get_num_threads()}" if spec.device == "cpu" else "one GPU"
    teachers = " + ".join(map(str, spec.teacher_dims))
    title = f"Forward and backward, student {spec.dim}, teachers {teachers}; {where}, PyTorch {torch.__version__}"
    columns = ("loss", "batch", "seconds", "ratio", "range", "CPU seconds", "memory GiB", "batch x batch matrices")
    table = empty_table(columns, texts=("loss",), title=title)
    pairs = zip(results["tiled", spec.batch], results["dense", spec.batch], strict=True)
    ratios = sorted(tiled.seconds / dense.seconds for tiled, dense in pairs)
    for (side, batch), found in results.items():
        compared = side == "tiled" and batch == spec.batch
        memory = max(one.bytes for one in found)
        table.add_row(
            side,
            str(batch),
            f"{statistics.median(one.seconds for one in found):.2f}",
            f"{statistics.median(ratios):.2f}" if compared else "",
            f"{ratios[0]:.2f}-{ratios[-1]:.2f}" if compared else "",
            f"{statistics.median(one.cpu_seconds for one in found):.2f}",
            f"{memory / GIB:.2f}",
            f"{memory / (4 * batch**2):.1f}",
        )
    print_table(table)


if __name__ == "__main__":
    main(LossBenchSpec, run, __doc__)

"""What a processor can compute at most, how much of it each form of a tower reaches, and where the rest goes.

Command:   python -m benchmarks roofline --threads 1 --output outputs/roofline.json      (needs the extra `test`)
           python -m benchmarks roofline --models s0 --towers image --forms openvino
           python -m benchmarks roofline --threads 1 --output outputs/roofline.json --page docs/roofline.md
Hardware:  any CPU with nothing else to do
Time:      a minute a case
Result:    a table: what the machine reaches at products of matrices and at copies; of each form, a row for the whole
           and one for each kind of operator: calls, milliseconds, share of the time, GFLOP, GFLOP/s, part of what the
           machine reaches in the form's precision, and megabytes that come in and go out

A call's milliseconds are the least of all rounds, with one thread by the processor's own time. An operator's are the
least by the clock, as the profiler of OpenVINO, ONNX Runtime or PyTorch has them. What is fused into an operator, such
as an activation behind a convolution, is part of it. `between operators` is what a call takes and no operator does.
Operations are two for each multiplication, counted in PyTorch's eager tower, which computes the same; megabytes are
what goes into and comes out of these operators. What the machine reaches are PyTorch's products of two matrices. The
tower is what `mobileclip export` gives a runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import attrs
import torch
from attrs import validators
from torch import Tensor

from benchmarks.harness import Bench, Case, Results, Row, Value, require, text
from benchmarks.harness.memory import keep_memory
from benchmarks.harness.results import write_results
from benchmarks.rivals import Size, Tower
from benchmarks.roofline_operators import KINDS, Form, Work, least_seconds, profiled, work_of
from benchmarks.runtime_forms import missing, parts_of
from benchmarks.runtime_sides import match_of
from benchmarks.runtimes import RuntimesBenchSpec
from mobileclip.hardware.precision import FastPrecision

_SIDES, _ROUNDS = (512, 1024), 30
# Times do not depend on pictures, and no embedding is looked at: few and small ones do.
_PHOTO_SIDE, _EVERY = 300, 4
_COPIES = {"copy of 1 MB": 2**20, "copy of 64 MB": 2**26}
_BYTES: dict[FastPrecision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
_MACHINE, _WHOLE = "the machine", "all"
_START, _END = "<!-- roofline -->\n", "<!-- /roofline -->\n"


@attrs.frozen(kw_only=True)
class RooflineBenchSpec(Bench):
    """What to look into.

    Args:
        models: which models.
        towers: which of their towers.
        batch_sizes: images or texts per call.
        forms: which forms; what is not installed is a row that says so.
        rounds: calls that each operator's least time is of.
        quantised: a folder with what `mobileclip quantize` made of each model, such as `s0.safetensors`, for the form
            `openvino_tuned`.
        page: a page of the documentation whose table is renewed, and the results beside it; None for none.
        seed: of the weights.
    """

    models: tuple[Size, ...] = ("s0", "s2", "b")
    towers: tuple[Tower, ...] = ("image", "text")
    batch_sizes: tuple[int, ...] = attrs.field(default=(1,), validator=validators.deep_iterable(validators.gt(0)))
    forms: tuple[Form, ...] = ("eager", "onnxruntime", "openvino", "openvino_int8")
    rounds: int = attrs.field(default=40, validator=validators.gt(0))
    quantised: Path | None = None
    page: Path | None = None
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {
        "models": ("s0",),
        "towers": ("text",),
        "forms": ("eager", "onnxruntime"),
        "rounds": 2,
        "page": None,
    }
    selects: ClassVar[frozenset[str]] = frozenset(("models", "towers", "batch_sizes", "forms", "page"))

    def cases(self) -> Iterator[Case]:
        """Yield the machine, then every form, in a process of its own."""
        require("timm", "open_clip", "torchvision")
        yield Case(labels={"model": _MACHINE}, measure=machine_rows)
        for model, tower, batch_size, form in product(self.models, self.towers, self.batch_sizes, self.forms):
            labels = {"model": model, "tower": tower, "batch": str(batch_size), "form": form}
            yield Case(labels=labels, measure=partial(measure, self, model, tower, batch_size, form), apart=True)

    def finish(self, results: Results) -> None:
        """Renew the table of the page, and the results beside it."""
        if self.page is not None:
            write_results(self.page.with_suffix(".json"), results)
            before, _, rest = self.page.read_text(encoding="utf-8").partition(_START)
            _, _, behind = rest.partition(_END)
            content = f"{before}{_START}{page_table(results)}{_END}{behind}"
            self.page.write_text(content, encoding="utf-8")


def machine_rows() -> list[Row]:
    """Return what the machine reaches at products of matrices, and at copies."""
    reached = {f"product in {precision}": Value(number=peak(precision), unit="") for precision in _BYTES}
    rows = [Row(case={"operators": name}, values={"GFLOP/s": value}) for name, value in reached.items()]
    copies = {name: copied_per_second(size) for name, size in _COPIES.items()}
    return [*rows, *(Row(case={"operators": name}, values={"GB/s": Value(number=one)}) for name, one in copies.items())]


def peak(precision: FastPrecision) -> float:
    """Return the most billions of operations a second of products of two matrices of 512 or 1,024 rows and columns."""
    return max(2e-9 * side**3 / least_seconds(_product(precision, side), rounds=_ROUNDS) for side in _SIDES)


def _product(precision: FastPrecision, side: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    if precision == "int8":
        whole = (torch.randint(-64, 64, (side, side), generator=generator, dtype=torch.int8) for _ in range(2))
        return partial(torch._int_mm, *whole)  # noqa: SLF001 - a faster one is not public
    one, other = (torch.rand(side, side, generator=generator).to(getattr(torch, precision)) for _ in range(2))
    return partial(torch.matmul, one, other)


def copied_per_second(size: int) -> float:
    """Return the gigabytes a second that are read and written by copies of so many bytes."""
    source = torch.rand(size // 4)
    target, times = torch.empty_like(source), max(1, 2**26 // size)

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    return 2e-9 * size * times / least_seconds(copy, rounds=_ROUNDS)


@torch.no_grad()
def measure(spec: RooflineBenchSpec, model: Size, tower: Tower, batch_size: int, form: Form) -> list[Row]:
    """Return the rows of a form; the process keeps the memory and the seed that this sets."""
    if why := missing(form):
        return [Row(failure=why)]
    keep_memory()
    torch.manual_seed(spec.seed)
    as_there = RuntimesBenchSpec(seed=spec.seed, quantised=spec.quantised, photo_side=_PHOTO_SIDE)
    match = match_of(as_there, model, tower, batch_size)
    ours, precision = match.sides[1], parts_of(form)[1]
    work = work_of(ours.computed, match.inputs, item_size=_BYTES[precision])
    with TemporaryDirectory() as folder:
        found = profiled(ours, form, match.inputs, match.calibration.ranges[::_EVERY], Path(folder), rounds=spec.rounds)
    reached, summed = peak(precision), sum(ms for _, ms in found.kinds.values())
    # Other work on the machine lengthens operators, which are measured by the clock: shares are then of their sum.
    row = partial(row_of, whole=max(found.call_ms, summed), reached=reached)
    rows = [row_of(_WHOLE, found.call_ms, sum(work.values(), Work()), whole=found.call_ms, reached=reached)]
    for kind in KINDS:
        if kind in found.kinds:
            calls, ms = found.kinds[kind]
            rows.append(row(kind, ms, work.get(kind, Work()), calls=calls))
    return [*rows, row("between operators", max(0.0, found.call_ms - summed), Work())]


def row_of(kind: str, ms: float, work: Work, *, calls: int | None = None, whole: float, reached: float) -> Row:
    """Return the row of a kind of operators.

    Args:
        kind: which.
        ms: that they take.
        work: that they do.
        calls: how many there are; None for what is no operator.
        whole: milliseconds of the whole form.
        reached: what the machine reaches in the form's precision, in billions of operations a second.
    """
    values = {} if calls is None else {"calls": Value(number=calls)}
    values |= {"time": Value(number=ms, unit="ms"), "share": Value(number=100 * ms / whole, unit="%")}
    if work.operations and ms:
        rate = 1e-6 * work.operations / ms
        values |= {
            "GFLOP": Value(number=1e-9 * work.operations),
            "GFLOP/s": Value(number=rate),
            "of the machine": Value(number=100 * rate / reached, unit="%"),
            "MB": Value(number=1e-6 * work.num_bytes),
        }
    return Row(case={"operators": kind}, values=values)


def page_table(results: Results) -> str:
    """Return the table of a page: what the machine reaches, and a row for each form."""
    machine = [row for row in results.rows if row.case["model"] == _MACHINE]
    lines = [f"{results.machine}:", "", "| the machine | |", "|---|---|"]
    lines += [
        f"| {row.case['operators']} | {text(value.number)} {name} |"
        for row in machine
        for name, value in row.values.items()
    ]
    forms: dict[tuple[str, ...], dict[str, Mapping[str, Value]]] = {}
    for row in results.rows:
        if row.case["model"] != _MACHINE and row.failure is None:
            key = tuple(row.case[name] for name in ("model", "tower", "batch", "form"))
            forms.setdefault(key, {})[row.case["operators"]] = row.values
    kinds = [kind for kind in (*KINDS, "between operators") if any(kind in found for found in forms.values())]
    head = ["", "ms", "GFLOP", "GFLOP/s", "of the machine, %", *(f"{kind}, % of time" for kind in kinds)]
    lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for key, found in forms.items():
        whole = found[_WHOLE]
        cells = [" ".join(key), *(text(whole[name].number) for name in ("time", "GFLOP", "GFLOP/s", "of the machine"))]
        cells += [text(found[kind]["share"].number) if kind in found else "" for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])

"""Everything that needs a CUDA device, on one card: tests, training steps, the loss, reinforcement; and its page.

Command:   make gpu                                   (from a machine that has PyTorch with CUDA)
           python -m benchmarks gpu                   (needs the extra `gpu`)
           python -m benchmarks gpu --only train      (parts whose names begin so)
           python -m benchmarks gpu --device cpu --tiny      (whether it runs at all)
Hardware:  one GPU with CUDA; 24 GB of its memory or more
Time:      less than 23 minutes: every part is ended at its limit
Result:    build/gpu.json, which has every part as soon as it is done, and docs/lab/gpu.md, written from it. Parts that
           lie there are not measured again: a second run does what failed, was killed or took too long

Each part is a process of its own. What it prints is in a file beside the results.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree import ElementTree as ET

import attrs
import torch

from benchmarks import cost_reinforce, loss, reinforce, train
from benchmarks.cost_reinforce import CostSpec
from benchmarks.harness import Bench, Case, Measure, Results, Row, Value, markdown, require
from benchmarks.reinforce import ReinforceBenchSpec
from benchmarks.rivals import Size
from benchmarks.train import TrainBenchSpec
from mobileclip.storage import write_text
from mobileclip.terminal import say

Device = Literal["cpu", "cuda"]
ROOT = Path(__file__).parents[1]
SIZES: tuple[Size, ...] = ("s0", "s2", "b")
LOSS_BATCHES = (8192, 16384, 32768, 65536, 131072)
# Most of which is the compiler's: S2 has the most layers that differ.
_COMPILED_SECONDS: dict[Size, float] = {"s0": 120, "s2": 150, "b": 120}
NOTHING = "Not measured yet."

_HEAD = """# Measured on a GPU

```
make gpu                       # all of it, in less than 25 minutes on one card; a second run does what is missing
make gpu ARGS="--only train"   # some of it
```

It needs Linux, and a Python that has PyTorch with CUDA (`make PYTHON=/path/to/python3 gpu`). That PyTorch stays as it
is. The figures are written to `build/gpu.json`, and this page from them.
"""
# What stands above the table of the parts whose names begin so.
_SECTIONS = {
    "tests": """## Tests

The tests that need a CUDA device. Those of xformers and of several cards are skipped where these are not there.
""",
    "train": """## A training step

A model of this library beside open_clip's of the same weights: forward, contrastive loss, backward, AdamW; 128 images
and texts of random numbers, bfloat16, `channels_last`. Compiled is `compile="step"` here, and the model as one there.
Memory is the peak of a step over weights and optimiser's state (`python -m benchmarks train`).
""",
    "loss": """## The loss

The reinforced loss forward and backward, tile by tile, and dense, with every matrix held: float32, 512 dims, two
teachers of 768, real and synthetic captions. Memory is the peak over the embeddings (`python -m benchmarks loss`).
""",
    "rates": """## Teachers and captioner

ViT-L/14 and CoCa ViT-L/14 of random weights, bfloat16, from pixels and captions to embeddings on the CPU
(`python -m benchmarks cost_reinforce`).
""",
    "job": """## Reinforcement

A whole job with a ViT-L/14, bfloat16, 10 augmentations and 6 captions a picture, beside the bare forward passes on the
same pictures and captions. What the job takes more is decoding, augmenting and writing, on this machine's processor
(`python -m benchmarks reinforce`).
""",
}


@attrs.frozen(kw_only=True)
class GpuBenchSpec(Bench):
    """What to measure, and where the results go.

    Args:
        output: JSON file of the results.
        page: the page that is written from them; with `tiny`, it goes beside them instead.
        device: where to measure.
        only: beginnings of the names of the parts to measure; none for all.
    """

    output: Path | None = Path("build/gpu.json")
    page: Path = ROOT / "docs" / "lab" / "gpu.md"
    device: Device = "cuda"
    only: tuple[str, ...] = ()

    selects: ClassVar[frozenset[str]] = frozenset(("only", "page"))

    def cases(self) -> Iterator[Case]:
        """Yield the parts that are asked for, each in a process of its own, and ended at its limit.

        Raises:
            SystemExit: if there is no CUDA device, or a package is missing.
            ValueError: if there is no such part.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("PyTorch finds no CUDA device here; --device cpu --tiny shows whether the program runs")
        require("timm", "open_clip")
        known = list(parts(self.device, tiny=self.tiny))
        names = [case.labels["part"] for case in known]
        for beginning in self.only:
            if not any(name.startswith(beginning) for name in names):
                raise ValueError(f"no part begins with {beginning!r}; there are: {', '.join(names)}")
        for case in known:
            if not self.only or case.labels["part"].startswith(self.only):
                yield case

    def finish(self, results: Results) -> None:
        """Write the page."""
        assert self.output is not None, "it has a default"
        path = self.output.with_suffix(".md") if self.tiny else self.page
        write_text(path, page(results))
        say(f"{self.output} has the results, and {path} shows them")


def parts(device: Device, *, tiny: bool) -> Iterator[Case]:
    """Yield the parts in their order; on a GPU, their limits add up to less than 23 minutes.

    Args:
        device: where to measure.
        tiny: with models, batches and rounds so small that it only shows whether all runs.
    """
    # A CPU is for trying it, and may be a busy one.
    factor = 1 if device == "cuda" else 8

    def part(name: str, measure: Measure, limit_seconds: float) -> Case:
        return Case(labels={"part": name}, measure=measure, apart=True, limit_seconds=factor * limit_seconds)

    yield part("tests", partial(run_tests, device), 300)
    # On the CPU, what is compiled of S0 takes minutes to build and ends in a double free.
    for compiled, size in product((False, True) if device == "cuda" else (False,), SIZES[:1] if tiny else SIZES):
        steps = train_spec(device, size, compiled=compiled)
        measure = partial(train.measure, steps.small() if tiny else steps, size)
        yield part(
            f"train {size}{' compiled' if compiled else ''}", measure, _COMPILED_SECONDS[size] if compiled else 40
        )
    for batch in (64,) if tiny else LOSS_BATCHES:
        terms = loss.LossBenchSpec(device=device, repeats=1)
        limit = 85 if batch == max(LOSS_BATCHES) else 50
        yield part(f"loss {batch}", partial(loss.compare, terms, batch, loss.SIDES), limit)
    rates = CostSpec(device=device, precision="bfloat16", batch_size=128, augmentations=(), captions=())
    yield part("rates", partial(cost_reinforce.measure_all, rates.small() if tiny else rates), 150)
    job = ReinforceBenchSpec(model="ViT-L-14", num_samples=256, num_rounds=2, device=device, precision="bfloat16")
    yield part("job", partial(reinforce.measure_all, job.small() if tiny else job), 120)


def train_spec(device: Device, size: Size, *, compiled: bool) -> TrainBenchSpec:
    """Return the comparison of one model: on a GPU in bfloat16 and channels_last, as such models are trained."""
    return TrainBenchSpec(
        models=(size,),
        device=device,
        compile="step" if compiled else None,
        batch_size=128,
        rounds=20,
        precision="bfloat16",
        channels_last=device == "cuda",
    )


def page(results: Results | None) -> str:
    """Return the page in Markdown.

    Args:
        results: what was measured; None where nothing was.
    """
    rows = () if results is None else results.rows
    where = NOTHING if results is None else f"Measured on: {results.machine}."
    if results is not None and results.choices.get("tiny"):
        where += "\n\nEverything was made so small that the figures mean nothing (`--tiny`)."
    lines = [_HEAD, f"{where}\n"]
    for prefix, text in _SECTIONS.items():
        own = [row for row in rows if row.case["part"].startswith(prefix)]
        lines += [text, markdown(_plain(own)) if own else f"{NOTHING}\n"]
    return "\n".join(lines)


def _plain(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the first sentence of each error, since PyTorch's go on for a paragraph."""
    return [
        attrs.evolve(row, failure=f"`{row.failure.splitlines()[0].split('. ')[0].replace('`', chr(39))}`")
        if row.failure
        else row
        for row in rows
    ]


def run_tests(device: Device) -> list[Row]:
    """Run the tests that are marked `gpu`; on the CPU, those of them that can run there.

    Raises:
        RuntimeError: if they cannot be collected.
    """
    files = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    with tempfile.TemporaryDirectory(prefix="mobileclip-") as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *map(str, files)]
        environment = os.environ | ({"GPU_TESTS_ON": "cpu"} if device == "cpu" else {})
        subprocess.run(command, cwd=ROOT, env=environment, check=False)  # noqa: S603
        if not report.exists():
            raise RuntimeError("pytest wrote no report of the tests; what it printed says why")
        return [read_report(report)]


def read_report(path: Path) -> Row:
    """Return what pytest's JUnit report says.

    Args:
        path: of a report that this program's own pytest wrote.
    """
    cases = list(ET.parse(path).getroot().iter("testcase"))  # noqa: S314
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    numbers = {"passed": len(cases) - len(failed) - len(skipped), "skipped": len(skipped), "failed": len(failed)}
    names = [f"{case.get('classname')}.{case.get('name')}" for case in failed]
    values = {name: Value(number=number) for name, number in numbers.items()}
    return Row(values=values, notes={"which": ", ".join(names)} if names else {})

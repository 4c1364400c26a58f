"""Everything that needs a CUDA device, on one card: tests, training steps, the loss, reinforcement; and its page.

Command:   make gpu                                   (from a machine that has PyTorch with CUDA)
           python -m benchmarks.gpu                   (needs the extra `gpu`)
           python -m benchmarks.gpu --only train      (parts whose names begin so)
           python -m benchmarks.gpu --device cpu --tiny      (whether it runs at all)
Hardware:  one GPU with CUDA; 24 GB of its memory or more
Time:      less than 23 minutes: every part is ended at its limit
Result:    build/gpu.json, which has every part as soon as it is done, and docs/gpu.md, written from it. Parts that lie
           there are not measured again: a second run does what failed, was killed or took too long

Each part is a process of its own. What it prints is in a file beside the results.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from benchmarks.command_line import main
from benchmarks.gpu.page import page
from benchmarks.gpu.parts import ROOT, Device, Part, parts
from benchmarks.gpu.results import Machine, Outcome, Results, read_results, write_results
from benchmarks.gpu.running import run_apart
from benchmarks.rivals import require_rivals
from mobileclip.progress import duration, track
from mobileclip.storage import write_text
from mobileclip.terminal import say


@attrs.frozen(kw_only=True)
class GpuBenchSpec:
    """What to measure, and where the results go.

    Args:
        output: JSON file of the results.
        page: the page that is written from them; with `tiny`, it goes beside them instead.
        device: where to measure.
        only: beginnings of the names of the parts to measure; none for all.
        tiny: everything so small that it only shows whether it runs.
    """

    output: Path = Path("build/gpu.json")
    page: Path = ROOT / "docs" / "gpu.md"
    device: Device = "cuda"
    only: tuple[str, ...] = ()
    tiny: bool = False


def chosen(spec: GpuBenchSpec) -> dict[str, Part]:
    """Return the parts that are asked for.

    Raises:
        ValueError: if there is no such part.
    """
    known = parts(spec.device, tiny=spec.tiny)
    for beginning in spec.only:
        if not any(name.startswith(beginning) for name in known):
            raise ValueError(f"no part begins with {beginning!r}; there are: {', '.join(known)}")
    return {name: part for name, part in known.items() if not spec.only or name.startswith(spec.only)}


def run(spec: GpuBenchSpec) -> Results:
    """Measure what is missing, and write the file after every part and the page at the end.

    Raises:
        SystemExit: if there is no CUDA device, or a package is missing.
        ValueError: if the file was measured elsewhere, or there is no such part.
    """
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --device cpu --tiny shows whether the program runs")
    require_rivals()
    wanted = chosen(spec)
    results = read_results(spec.output, Machine.here(spec.device, tiny=spec.tiny))
    done = {name for name, outcome in results.outcomes.items() if outcome.error is None}
    left = {name: part for name, part in wanted.items() if name not in done}
    limit = duration(sum(part.limit_seconds for part in left.values()))
    say(f"{len(left)} of {len(wanted)} parts are to be measured, which takes {limit} at most", error=True)
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    for name, part in track(left.items(), total=len(left), title="measuring", unit="parts"):
        log = spec.output.with_suffix("") / f"{name.replace(' ', '-')}.log"
        outcome = run_apart(part.measure, limit_seconds=part.limit_seconds, log=log)
        results = attrs.evolve(results, outcomes={**results.outcomes, name: outcome})
        write_results(spec.output, results)
        say(f"{name}, {outcome.seconds:.0f} s: {_told(outcome)}", error=True)
    ordered = {name: results.outcomes[name] for name in parts(spec.device, tiny=spec.tiny) if name in results.outcomes}
    results = attrs.evolve(results, outcomes=ordered)
    path = spec.output.with_suffix(".md") if spec.tiny else spec.page
    write_text(path, page(results))
    say(f"{spec.output} has the results, and {path} shows them")
    return results


def _told(outcome: Outcome) -> str:
    if outcome.tests is not None:
        return f"{outcome.tests.num_passed} passed, {len(outcome.tests.failed)} failed"
    return "measured" if outcome.error is None else outcome.error


if __name__ == "__main__":
    main(GpuBenchSpec, run, __doc__)

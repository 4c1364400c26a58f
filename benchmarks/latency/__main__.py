"""How long an image and a text take: mobileclip and the release, compiled and exported, in one run.

Command:   python -m benchmarks.latency             (needs the extra `test`)
           python -m benchmarks.latency --models s0 --batch-sizes 1 --runtimes      (a first look)
Hardware:  any CPU with a C++ compiler; close what else computes, or the quartiles say how far to trust the medians
Time:      an hour and a half on two cores; 20 minutes with `--batch-sizes 1`
Result:    a table: milliseconds, the ratio to the release's way (below 1: faster) by the clock and by the processor's
           time, the quartiles of the ratios, the smallest cosine and the largest error against it; the same in
           OUTPUT/latency.jsonl, and OUTPUT/latency.png, accuracy over latency. Cases that lie there are not measured
           again: what was killed goes on, and the picture has all of them

All sides hold the same weights and get the same inputs, and take their turns in every round, in an order drawn anew, so
that a machine that slows down for a while slows all of them down; of two calls in a turn, the second counts. Every case
(a tower, a batch size) has a process of its own, which keeps its memory, so that no side pays for what others made of
the heap. The release's way is open_clip's model (its image tower is timm's), reparameterised by timm, eager, in
float32. Runtimes get its tower as they get mobileclip's, exported by the same code; an export of mobileclip is
compared with the release's in the same runtime as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from benchmarks.command_line import empty_table, main
from benchmarks.latency import (
    Latency,
    LatencyBenchSpec,
    Setting,
    cases,
    draw_accuracy,
    measure_apart,
    read_results,
    write_results,
)
from benchmarks.rivals import require_rivals
from mobileclip.evaluation.report.figures import LIGHT, to_png
from mobileclip.progress import track
from mobileclip.terminal import print_table, say

if TYPE_CHECKING:
    from rich.table import Table

# Columns of a line of the table: it is read from files as well.
_WIDTH = 140


def tiny(spec: LatencyBenchSpec) -> LatencyBenchSpec:
    """Return the comparison of one model, one image and one text at a time, in two rounds, with nothing compiled."""
    return attrs.evolve(spec, models=("s0",), batch_sizes=(1,), rounds=2, compiled=False)


def run(spec: LatencyBenchSpec) -> None:
    """Compare what is not in the file of results yet, with a bar for how far it is; write, draw and print all of it."""
    spec = tiny(spec) if spec.tiny else spec
    require_rivals()
    spec.output.mkdir(parents=True, exist_ok=True)
    path, setting = spec.output / "latency.jsonl", Setting.of(spec)
    found = read_results(path, setting)
    known = {latency.case for latency in found}
    left = [case for case in cases(spec) if case not in known]
    if known:
        say(f"{path} has {len(known)} cases from before: {len(left)} are left")
    for latencies in track(
        (measure_apart(spec, case) for case in left), total=len(left), title="comparing", unit="cases"
    ):
        found += latencies
        write_results(path, setting, found)
    picture = draw_accuracy(found, title=str(setting), theme=LIGHT)
    (spec.output / "latency.png").write_bytes(to_png(picture))
    print_table(table_of(found, title=str(setting)), min_width=_WIDTH)


def table_of(latencies: list[Latency], *, title: str) -> Table:
    """Return the table of all figures."""
    columns = ("tower", "batch", "way", "ms", "ratio", "quartiles", "cpu ratio", "cosine", "error", "runtime", "form")
    table = empty_table(columns, texts=("tower", "way", "form"), title=title)
    for latency in latencies:
        low, high = latency.ratio_quartiles
        measured = (f"{latency.milliseconds:.1f}", f"{latency.ratio:.2f}", f"{low:.2f}-{high:.2f}")
        exactness = (f"{latency.cpu_ratio:.2f}", f"{latency.cosine:.6f}", f"{latency.error:.0e}")
        named = (str(latency.case), str(latency.case.batch_size), latency.way)
        runtime = "" if latency.runtime_ratio is None else f"{latency.runtime_ratio:.2f}"
        table.add_row(*named, *measured, *exactness, runtime, latency.form)
    return table


if __name__ == "__main__":
    main(LatencyBenchSpec, run, __doc__)

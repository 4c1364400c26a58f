"""Models in all formats and precisions: size, agreement with the model, accuracy lost, latency here, and what failed.

Command:   python -m benchmarks.exports --data DATA --converter litert-converter/bin/python     (needs the extra `test`)
           python -m benchmarks.exports --models random:mobileclip_s0 --targets onnx openvino --precisions float32
Hardware:  any CPU, with nothing else running on it
Time:      half a minute a cell for a small model, minutes for MobileCLIP-S0 in 8 bits
Result:    a table in OUTPUT/exports.md, and the same in OUTPUT/exports.jsonl, one line a cell. Cells that lie there are
           not measured again: what was stopped goes on

A cell is a model in a format and a precision, measured in a process of its own, so that one that crashes is one line.
Cosines, first results and gates are those of `mobileclip verify`, on the pictures of the package. Accuracy is that of
`mobileclip eval` through the export, image by image against the model's, with its 95 % interval. Milliseconds are
medians for one input, with the runtime's way in and out through PyTorch.
"""

from __future__ import annotations

import attrs

from benchmarks.command_line import main
from benchmarks.exports import ExportsBenchSpec, Outcome, cells, markdown, measure_apart
from benchmarks.lines import read_lines, write_lines
from mobileclip.progress import track
from mobileclip.terminal import say


def tiny(spec: ExportsBenchSpec) -> ExportsBenchSpec:
    """Return the smallest matrix."""
    return attrs.evolve(spec, models=("icons",), targets=("onnx",), precisions=("float32",), rounds=3)


def run(spec: ExportsBenchSpec) -> None:
    """Measure the cells that are not known yet, with a bar for how far it is; write the table and print it."""
    spec = tiny(spec) if spec.tiny else spec
    spec.output.mkdir(parents=True, exist_ok=True)
    path, table = spec.output / "exports.jsonl", spec.output / "exports.md"
    found = [one for one in read_lines(path, Outcome) if not (spec.again and one.failure is not None)]
    known = {outcome.cell for outcome in found}
    left = [cell for cell in cells(spec) if cell not in known]
    if known:
        say(f"{path} has {len(known)} cells from before: {len(left)} are left")
    outcomes = (measure_apart(spec, cell) for cell in left)
    for outcome in track(outcomes, total=len(left), title="exporting", unit="cells"):
        found.append(outcome)
        write_lines(path, found)
    text = markdown(found)
    table.write_text(text, encoding="utf-8")
    say(text)


if __name__ == "__main__":
    main(ExportsBenchSpec, run, __doc__)

"""Benchmarks: each compares the library with other software in one run, with one table and one results format.

Command:   python -m benchmarks NAME [--output FILE] [flags]
           python -m benchmarks NAME --help
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from benchmarks.harness import Bench, run
from mobileclip.recipes import read_header, started
from mobileclip.terminal import say

BENCHMARKS = {
    "headline": "HeadlineBenchSpec",
    "runtimes": "RuntimesBenchSpec",
    "quantization": "QuantizationBenchSpec",
    "train": "TrainBenchSpec",
    "loss": "LossBenchSpec",
    "data": "DataBenchSpec",
    "cost_reinforce": "CostSpec",
    "collection": "CollectionBenchSpec",
}
"""The class of each, in the module of its name."""


def bench_of(name: str) -> type[Bench]:
    """Return the benchmark of a name."""
    found: type[Bench] = getattr(importlib.import_module(f"benchmarks.{name}"), BENCHMARKS[name])
    return found


def listed() -> str:
    """Return every benchmark with a description and an example."""
    lines = ["python -m benchmarks NAME [--output FILE] [flags]; NAME --help lists the flags.", ""]
    for name in BENCHMARKS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        header = read_header(ast.get_docstring(ast.parse(source)))  # importing all of them takes seconds
        lines += [f"{name}: {header.title}", f"    {header.entries['Command'].splitlines()[0]}"]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the command line names, or list all benchmarks."""
    name, *others = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        say(listed())
        return
    if name not in BENCHMARKS:
        raise SystemExit(f"error: unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    cls = bench_of(name)
    docstring, kept = sys.modules[cls.__module__].__doc__, "results that are in files are kept, the others are gone"
    with started(cls, "benchmark", docstring, others, kept=kept, prog=f"python -m benchmarks {name}") as bench:
        run(bench, name)


if __name__ == "__main__":
    main()

"""Shared code of all benchmarks: measured cases, a runner, a table, and a results file."""

from benchmarks.harness.apart import LostProcessError, in_own_process
from benchmarks.harness.clock import (
    Seconds,
    clocked,
    in_turn,
    keep_memory,
    peak,
    ratio,
    rounds_of,
    seconds_of,
    spread,
    start_peak,
)
from benchmarks.harness.results import Machine, Results, Row, Value, read_results, text, write_results
from benchmarks.harness.runner import Bench, Case, Measure, require, run
from benchmarks.harness.table import cell, markdown

__all__ = [
    "Bench", "Case", "LostProcessError", "Machine", "Measure", "Results", "Row", "Seconds", "Value", "cell",
    "clocked",
    "in_own_process", "in_turn", "keep_memory", "markdown", "peak", "ratio", "read_results", "require", "rounds_of",
    "run", "seconds_of", "spread", "start_peak", "text", "write_results",
]  # fmt: skip

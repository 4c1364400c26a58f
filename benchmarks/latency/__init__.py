"""Latency, measured: the ways to compute an embedding, and the picture of what they take."""

from benchmarks.latency.comparing import captions, compare, measure_apart
from benchmarks.latency.plot import draw_accuracy
from benchmarks.latency.results import Setting, read_results, write_results
from benchmarks.latency.spec import LatencyBenchSpec, cases
from benchmarks.latency.ways import Case, Latency, Side

__all__ = [
    "Case",
    "Latency",
    "LatencyBenchSpec",
    "Setting",
    "Side",
    "captions",
    "cases",
    "compare",
    "draw_accuracy",
    "measure_apart",
    "read_results",
    "write_results",
]

"""Latency, measured: the ways to compute an embedding, and the picture of what they take."""

from latency.comparing import captions, compare, measure_apart
from latency.plot import draw_accuracy
from latency.results import Setting, read_results, write_results
from latency.spec import LatencyBenchSpec, cases
from latency.ways import Case, Latency, Side

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

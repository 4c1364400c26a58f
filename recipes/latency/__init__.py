"""Latency, measured: the ways to compute an embedding, and the picture of what they take."""

from latency.comparing import captions, compare, measure_apart
from latency.exported import Runtime
from latency.memory import keep_memory
from latency.plot import draw_accuracy
from latency.results import Setting, read_results, write_results
from latency.spec import LatencyBenchSpec, cases
from latency.ways import Case, Encode, Latency, Side, Way, sides

__all__ = [
    "Case",
    "Encode",
    "Latency",
    "LatencyBenchSpec",
    "Runtime",
    "Setting",
    "Side",
    "Way",
    "captions",
    "cases",
    "compare",
    "draw_accuracy",
    "keep_memory",
    "measure_apart",
    "read_results",
    "sides",
    "write_results",
]

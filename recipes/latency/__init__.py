"""Latency, measured: the ways to compute an embedding, and the picture of what they take."""

from latency.exported import Runtime
from latency.memory import keep_memory
from latency.plot import draw_accuracy
from latency.ways import Case, Encode, Latency, Side, Way, sides

__all__ = ["Case", "Encode", "Latency", "Runtime", "Side", "Way", "draw_accuracy", "keep_memory", "sides"]

"""Every model in every format and precision that is written and run here: size, agreement, accuracy lost, latency."""

from benchmarks.exports.measuring import measure, measure_apart
from benchmarks.exports.results import Cell, Loss, Measured, Outcome
from benchmarks.exports.spec import ExportsBenchSpec, cells
from benchmarks.exports.table import markdown

__all__ = [
    "Cell",
    "ExportsBenchSpec",
    "Loss",
    "Measured",
    "Outcome",
    "cells",
    "markdown",
    "measure",
    "measure_apart",
]

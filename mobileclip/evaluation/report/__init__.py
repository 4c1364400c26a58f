"""Reports: comparisons of models, tables and plots on one page.

What shows results belongs here; no model is asked here.
"""

from mobileclip.evaluation.report.page import write_plots, write_report
from mobileclip.evaluation.report.plots import (
    DARK,
    LIGHT,
    draw_latency,
    drawable,
    latency_panels,
    new_figure,
    to_png,
    to_svg,
)
from mobileclip.evaluation.report.tables import (
    Cell,
    Column,
    Difference,
    Table,
    compared_pairs,
    coverage_table,
    differences,
    differences_table,
    language_table,
    models_table,
    per_cent,
    points,
    provenance_table,
    results_table,
    robustness_table,
)
from mobileclip.evaluation.report.values import (
    Coverage,
    Latency,
    ModelResults,
    Provenance,
    published_model,
)

__all__ = [
    "DARK",
    "LIGHT",
    "Cell",
    "Column",
    "Coverage",
    "Difference",
    "Latency",
    "ModelResults",
    "Provenance",
    "Table",
    "compared_pairs",
    "coverage_table",
    "differences",
    "differences_table",
    "draw_latency",
    "drawable",
    "language_table",
    "latency_panels",
    "models_table",
    "new_figure",
    "per_cent",
    "points",
    "provenance_table",
    "published_model",
    "results_table",
    "robustness_table",
    "to_png",
    "to_svg",
    "write_plots",
    "write_report",
]

"""Results as people read them: verdicts first, then the pictures that decide them, tables and plots, on one page.

What shows results belongs here; no model is asked here.
"""

from mobileclip.evaluation.encoding.timing import Latency
from mobileclip.evaluation.report.disagreements import Disagreement, ShownPicture, find_disagreements
from mobileclip.evaluation.report.pictures import Picture
from mobileclip.evaluation.report.published import published_model
from mobileclip.evaluation.report.table import Cell, Column, Table
from mobileclip.evaluation.report.tables import models_table, results_table, robustness_table, verdict_table
from mobileclip.evaluation.report.values import Coverage, ModelResults, Provenance
from mobileclip.evaluation.report.verdicts import Comparison, compare, comparisons
from mobileclip.evaluation.report.write import write_plots, write_report

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Coverage",
    "Disagreement",
    "Latency",
    "ModelResults",
    "Picture",
    "Provenance",
    "ShownPicture",
    "Table",
    "compare",
    "comparisons",
    "find_disagreements",
    "models_table",
    "published_model",
    "results_table",
    "robustness_table",
    "verdict_table",
    "write_plots",
    "write_report",
]

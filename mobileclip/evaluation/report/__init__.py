"""Reports: comparisons of models, example pictures, tables and plots on one page.

What shows results belongs here; no model is asked here.
"""

from mobileclip.evaluation.report.disagreements import Disagreement, ShownPicture, find_disagreements
from mobileclip.evaluation.report.figures import DARK, LIGHT, drawable, new_figure, to_png, to_svg
from mobileclip.evaluation.report.labels import place_labels
from mobileclip.evaluation.report.languages import language_table as language_table
from mobileclip.evaluation.report.origins import coverage_table, provenance_table
from mobileclip.evaluation.report.pictures import LONGEST_SIDE, Picture, find_images, thumbnail
from mobileclip.evaluation.report.plots import draw_latency, latency_panels
from mobileclip.evaluation.report.published import published_model
from mobileclip.evaluation.report.table import Cell, Column, Table, per_cent, points
from mobileclip.evaluation.report.tables import models_table, results_table, robustness_table, verdict_table
from mobileclip.evaluation.report.values import Coverage, Latency, ModelResults, Provenance
from mobileclip.evaluation.report.verdicts import Comparison, compare, comparisons
from mobileclip.evaluation.report.write import write_plots, write_report

__all__ = [
    "DARK",
    "LIGHT",
    "LONGEST_SIDE",
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
    "coverage_table",
    "draw_latency",
    "drawable",
    "find_disagreements",
    "find_images",
    "latency_panels",
    "models_table",
    "new_figure",
    "per_cent",
    "place_labels",
    "points",
    "provenance_table",
    "published_model",
    "results_table",
    "robustness_table",
    "thumbnail",
    "to_png",
    "to_svg",
    "verdict_table",
    "write_plots",
    "write_report",
]

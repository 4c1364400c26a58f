"""Results as people read them: tables, plots, sheets of examples, and one page that holds them all."""

from mobileclip.evaluation.encoding.timing import Latency
from mobileclip.evaluation.report.confusion import ConfusedClass
from mobileclip.evaluation.report.details import DatasetDetails, dataset_details
from mobileclip.evaluation.report.examples import FoundImage, FoundText, ImageQuery, TextQuery
from mobileclip.evaluation.report.pictures import Picture
from mobileclip.evaluation.report.published import published_model
from mobileclip.evaluation.report.table import Cell, Column, Table
from mobileclip.evaluation.report.tables import (
    differences_table,
    models_table,
    paired_table,
    results_table,
    robustness_table,
)
from mobileclip.evaluation.report.values import Coverage, ModelResults, Provenance
from mobileclip.evaluation.report.write import write_pictures, write_report

__all__ = [
    "Cell",
    "Column",
    "ConfusedClass",
    "Coverage",
    "DatasetDetails",
    "FoundImage",
    "FoundText",
    "ImageQuery",
    "Latency",
    "ModelResults",
    "Picture",
    "Provenance",
    "Table",
    "TextQuery",
    "dataset_details",
    "differences_table",
    "models_table",
    "paired_table",
    "published_model",
    "results_table",
    "robustness_table",
    "write_pictures",
    "write_report",
]

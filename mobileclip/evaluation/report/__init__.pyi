from .page import write_plots as write_plots, write_report as write_report
from .plots import (
    DARK as DARK,
    LIGHT as LIGHT,
    draw_latency as draw_latency,
    drawable as drawable,
    latency_panels as latency_panels,
    new_figure as new_figure,
    to_png as to_png,
    to_svg as to_svg,
)
from .tables import (
    Cell as Cell,
    Column as Column,
    Difference as Difference,
    Table as Table,
    compared_pairs as compared_pairs,
    coverage_table as coverage_table,
    differences as differences,
    differences_table as differences_table,
    language_table as language_table,
    models_table as models_table,
    per_cent as per_cent,
    points as points,
    provenance_table as provenance_table,
    results_table as results_table,
    robustness_table as robustness_table,
)
from .values import (
    Coverage as Coverage,
    Latency as Latency,
    ModelResults as ModelResults,
    Provenance as Provenance,
    published_model as published_model,
)

from .disagreements import (
    Disagreement as Disagreement,
    ShownPicture as ShownPicture,
    find_disagreements as find_disagreements,
)
from .figures import (
    DARK as DARK,
    LIGHT as LIGHT,
    drawable as drawable,
    new_figure as new_figure,
    to_png as to_png,
    to_svg as to_svg,
)
from .labels import place_labels as place_labels
from .languages import language_table as language_table
from .origins import coverage_table as coverage_table, provenance_table as provenance_table
from .pictures import (
    LONGEST_SIDE as LONGEST_SIDE,
    Picture as Picture,
    find_images as find_images,
    thumbnail as thumbnail,
)
from .plots import draw_latency as draw_latency, latency_panels as latency_panels
from .published import published_model as published_model
from .table import Cell as Cell, Column as Column, Table as Table, per_cent as per_cent, points as points
from .tables import (
    models_table as models_table,
    results_table as results_table,
    robustness_table as robustness_table,
    verdict_table as verdict_table,
)
from .values import Coverage as Coverage, Latency as Latency, ModelResults as ModelResults, Provenance as Provenance
from .verdicts import Comparison as Comparison, compare as compare, comparisons as comparisons
from .write import write_plots as write_plots, write_report as write_report

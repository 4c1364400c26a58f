"""Reports: comparisons of models, example pictures, tables and plots on one page.

What shows results belongs here; no model is asked here.
"""

import lazy_loader

from mobileclip.evaluation.encoding.timing import Latency

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

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

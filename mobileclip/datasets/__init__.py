"""Prepares data before a run: sources, joins, curation, viewing, and images of classes.

Each package here has one task; what a training run reads at every step is in `mobileclip.data`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = [
    "ClassFolderSource",
    "FolderSource",
    "JsonLinesSource",
    "LabelledPipeline",
    "LabelledPipelineSpec",
    "RowOptions",
    "ShardSource",
    "Source",
    "TableSource",
    "Unit",
    "as_source",
    "find_class_names",
    "open_data_set",
]

"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches.

What lies between shards and a batch belongs here, in the room of its step; what several rooms need lies beside them.
What prepares data sets offline is in `mobileclip.datasets`; models and losses do not belong here.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_MOVED = (  # they work from here, too, through 0.1
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
)


def __getattr__(name: str) -> Any:
    return getattr(import_module("mobileclip.datasets"), name) if name in _MOVED else _import(name)

"""Sources: image-text data in the forms that it comes in, cut into units of work, each of which becomes one shard.

A new kind of data set enters here, registered by name. What is made of its units does not.
"""

from mobileclip.datasets.sources.access import RowOptions
from mobileclip.datasets.sources.base import Source, Unit, sources
from mobileclip.datasets.sources.class_folder import ClassFolderSource
from mobileclip.datasets.sources.folder import FolderSource
from mobileclip.datasets.sources.lists import JsonLinesSource, TableSource
from mobileclip.datasets.sources.opening import (
    EXPECTED,
    DataSet,
    as_source,
    is_gathered,
    is_place,
    label_of,
    name_of,
    open_data_set,
)
from mobileclip.datasets.sources.public_layout import LabelledShardSource, PublicLayoutSource
from mobileclip.datasets.sources.shards import ShardSource

__all__ = [
    "EXPECTED",
    "ClassFolderSource",
    "DataSet",
    "FolderSource",
    "JsonLinesSource",
    "LabelledShardSource",
    "PublicLayoutSource",
    "RowOptions",
    "ShardSource",
    "Source",
    "TableSource",
    "Unit",
    "as_source",
    "is_gathered",
    "is_place",
    "label_of",
    "name_of",
    "open_data_set",
    "sources",
]

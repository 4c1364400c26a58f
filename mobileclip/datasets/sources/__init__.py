"""Sources of image-text pairs: shards, JSON lines, tables and folders, cut into units of one shard each.

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
from mobileclip.datasets.sources.text_pairs import (
    TextColumns as TextColumns,
    TextPair as TextPair,
    read_text_pairs as read_text_pairs,
)

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

"""Sources: image-text data in the forms that it comes in, cut into units of work, each of which becomes one shard.

A new kind of data set enters here, registered by name. What is made of its units does not.
"""

from mobileclip.data.sources.access import RowOptions
from mobileclip.data.sources.base import Source, Unit, sources
from mobileclip.data.sources.class_folder import ClassFolderSource
from mobileclip.data.sources.folder import FolderSource
from mobileclip.data.sources.jsonl import JsonLinesSource
from mobileclip.data.sources.opening import (
    EXPECTED,
    DataSet,
    LabelledShardSource,
    as_source,
    is_place,
    label_of,
    name_of,
    open_data_set,
)
from mobileclip.data.sources.public_layout import PublicLayoutSource
from mobileclip.data.sources.shards import ShardSource
from mobileclip.data.sources.tables import TableSource

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
    "is_place",
    "label_of",
    "name_of",
    "open_data_set",
    "sources",
]

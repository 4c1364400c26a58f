"""Sources of image-text pairs: shards, JSON lines, tables and folders, cut into units of one shard each.

A new kind of data set enters here, registered by name. What is made of its units does not.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)
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

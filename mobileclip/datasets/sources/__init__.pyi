from .base import Source as Source, Unit as Unit, sources as sources
from .folder import ClassFolderSource as ClassFolderSource, FolderSource as FolderSource
from .lists import JsonLinesSource as JsonLinesSource, TableSource as TableSource
from .opening import (
    EXPECTED as EXPECTED,
    DataSet as DataSet,
    as_source as as_source,
    is_data_path as is_data_path,
    is_packed as is_packed,
    label_of as label_of,
    name_of as name_of,
    open_data_set as open_data_set,
)
from .rows import RowOptions as RowOptions
from .shards import (
    LabelledShardSource as LabelledShardSource,
    PublicLayoutSource as PublicLayoutSource,
    ShardSource as ShardSource,
)
from .text_pairs import TextColumns as TextColumns, TextPair as TextPair, read_text_pairs as read_text_pairs

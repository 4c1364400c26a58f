from .manifest import (
    MANIFEST as MANIFEST,
    FinishedFile as FinishedFile,
    Manifest as Manifest,
    ModelSource as ModelSource,
    Segment as Segment,
    read_manifest as read_manifest,
    write_manifest as write_manifest,
)
from .merging import MergeReport as MergeReport, merge_stores as merge_stores
from .places import default_index as default_index, moved_index as moved_index, newest_index as newest_index
from .presence import Presence as Presence, lies_in as lies_in
from .segments import (
    COLUMNS as COLUMNS,
    Row as Row,
    arrow as arrow,
    packed as packed,
    read_segment as read_segment,
    table_of as table_of,
    unpacked as unpacked,
    vectors_of as vectors_of,
    write_segment as write_segment,
)
from .snapshot import Snapshot as Snapshot, take_snapshot as take_snapshot
from .store import Place as Place, Store as Store, is_index as is_index

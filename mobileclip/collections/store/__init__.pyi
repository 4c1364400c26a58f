from .about import About as About, FinishedFile as FinishedFile, ModelSource as ModelSource
from .concepts import Concept as Concept, Example as Example, read_concepts as read_concepts
from .database import INDEX as INDEX
from .merging import MergeReport as MergeReport, merge_stores as merge_stores
from .places import default_index as default_index, moved_index as moved_index, newest_index as newest_index
from .presence import Presence as Presence, lies_in as lies_in
from .rows import COLUMNS as COLUMNS, Row as Row
from .snapshot import Snapshot as Snapshot, take_snapshot as take_snapshot
from .store import Store as Store, copy_of_parquet as copy_of_parquet, is_index as is_index
from .words import Words as Words, read_words as read_words

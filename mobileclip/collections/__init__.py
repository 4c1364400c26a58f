"""Collections of pictures: embeddings kept in a folder, brought up to date, and searched.

What becomes of a person's pictures belongs here; how a model encodes them does not.
"""

from mobileclip.collections.collection import Collection
from mobileclip.collections.duplicates import DuplicateGroup
from mobileclip.collections.filtering import Condition, parse_condition
from mobileclip.collections.manifest import Manifest, ModelSource, Segment
from mobileclip.collections.matches import Match
from mobileclip.collections.merging import MergeReport
from mobileclip.collections.options import IndexOptions, IndexReport

__all__ = [
    "Collection",
    "Condition",
    "DuplicateGroup",
    "IndexOptions",
    "IndexReport",
    "Manifest",
    "Match",
    "MergeReport",
    "ModelSource",
    "Segment",
    "parse_condition",
]

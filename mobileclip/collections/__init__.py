"""A searchable index of a person's pictures: kept in a folder, brought up to date, and searched.

What becomes of a person's pictures belongs here; how a model encodes them does not.
"""

from mobileclip.collections.collection import Collection
from mobileclip.collections.concepts import Concepts
from mobileclip.collections.indexing.report import IndexReport
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.searching.duplicates import DuplicateGroup, Duplicates
from mobileclip.collections.searching.filtering import Condition, parse_condition
from mobileclip.collections.searching.matches import Match
from mobileclip.collections.store.about import ModelSource
from mobileclip.collections.store.concepts import Concept, Example
from mobileclip.collections.store.merging import MergeReport
from mobileclip.collections.store.words import Words

__all__ = [
    "Collection",
    "Concept",
    "Concepts",
    "Condition",
    "DuplicateGroup",
    "Duplicates",
    "Example",
    "IndexOptions",
    "IndexReport",
    "Match",
    "MergeReport",
    "ModelSource",
    "Words",
    "parse_condition",
]

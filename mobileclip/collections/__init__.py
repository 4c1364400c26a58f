"""Creates, updates and searches image indexes.

This package is an application of the library; only `mobileclip.cli` imports this package.
"""

from mobileclip.collections.collection import Collection
from mobileclip.collections.concepts import Concept, Example
from mobileclip.collections.conditions import Condition, is_condition, parse_condition
from mobileclip.collections.duplicates import DuplicateGroup, Duplicates, require_threshold
from mobileclip.collections.images import small_images
from mobileclip.collections.index import IndexReport
from mobileclip.collections.locations import default_index, find_index, moved_index
from mobileclip.collections.merge import MergeReport
from mobileclip.collections.metadata import ModelSource
from mobileclip.collections.nearest import GraphSizes
from mobileclip.collections.queries import Matches
from mobileclip.collections.read import IndexOptions
from mobileclip.collections.scan import Scan, scan
from mobileclip.collections.snapshot import Match
from mobileclip.collections.store import INDEX, Store, is_index
from mobileclip.collections.tags import TagWords
from mobileclip.collections.teaching import Concepts
from mobileclip.collections.viewing import write_list, write_matches, write_page

__all__ = [
    "INDEX",
    "Collection",
    "Concept",
    "Concepts",
    "Condition",
    "DuplicateGroup",
    "Duplicates",
    "Example",
    "GraphSizes",
    "IndexOptions",
    "IndexReport",
    "Match",
    "Matches",
    "MergeReport",
    "ModelSource",
    "Scan",
    "Store",
    "TagWords",
    "default_index",
    "find_index",
    "is_condition",
    "is_index",
    "moved_index",
    "parse_condition",
    "require_threshold",
    "scan",
    "small_images",
    "write_list",
    "write_matches",
    "write_page",
]

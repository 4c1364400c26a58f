"""Reads image-text pairs from shards, JSON Lines files, tables and folders, in one unit per output shard.

A module in this package registers a `Source` class by name for each kind of data set.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in {"TextColumns", "TextPair", "read_text_pairs"}]

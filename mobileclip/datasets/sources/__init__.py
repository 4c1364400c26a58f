"""Sources of image-text pairs: shards, JSON Lines files, tables and folders, divided into one unit per output shard.

New kinds of data sets belong here, registered by name.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in {"TextColumns", "TextPair", "read_text_pairs"}]

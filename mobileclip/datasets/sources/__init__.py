"""Sources of image-text pairs: shards, JSON lines, tables and folders, cut into units of one shard each.

Add new kinds of data sets here, registered by name.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in {"TextColumns", "TextPair", "read_text_pairs"}]

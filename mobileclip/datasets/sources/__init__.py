"""Sources of image-text pairs: shards, JSON lines, tables and folders, cut into units of one shard each.

A new kind of data set enters here, registered by name. What is made of its units does not.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in {"TextColumns", "TextPair", "read_text_pairs"}]

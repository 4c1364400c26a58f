"""Brings an index up to date: new files are encoded, moved ones recognised, deleted ones dropped.

What is to be read and what is written down of it belongs here; how a file is read does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Searches an index by text, example picture, metadata and similarity.

What answers a question to an index belongs here, and its pictures read again; how answers look does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

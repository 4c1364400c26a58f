"""Quantises a folded tower to int8: rounding, ranges, and learning them from its own embeddings.

What any runtime computes of it belongs here; how a format says it, in `export.targets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

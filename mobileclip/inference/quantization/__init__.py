"""A folded tower in int8, tuned by itself: what is rounded and how, from which ranges, and how they are learned.

What any runtime computes of it belongs here; how a format says it, in `export.targets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Files to embeddings: which files there are, which pictures are in them, and what became of each.

What can be done without the index at hand belongs here; what enters the index does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

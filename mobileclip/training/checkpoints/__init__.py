"""Training checkpoints: what is in them, how they are written in the background, and which are kept.

When a run writes one does not belong here, see `saving`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

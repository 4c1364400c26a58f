"""The state of a run as a file: what is in it, how it is written beside the training, and which are kept.

When a run writes one does not belong here, see `saving`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

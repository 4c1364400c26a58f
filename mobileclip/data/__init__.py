"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches.

What lies between shards and a batch belongs here, in the package of its step; what several need lies beside them.
What prepares data sets offline is in `mobileclip.datasets`; models and losses do not belong here.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

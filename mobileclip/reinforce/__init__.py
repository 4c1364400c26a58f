"""Reinforces data sets: captions and teachers' embeddings, computed once and stored beside each image.

What computes, stores and checks it belongs here; reading it belongs in `data`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = list(_names)

"""Image files to pixels: formats, limits, decoding, and a model's preprocessing.

What concerns a picture alone belongs here; what changes its pixels at random, in `data.augmentation`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Bytes to pixels: which files are images, what opening one may cost, and the preprocessing of a model.

What concerns a picture alone belongs here; what changes its pixels at random, in `data.augmentation`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

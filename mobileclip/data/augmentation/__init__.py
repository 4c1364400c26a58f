"""Augmentations: drawn once, stored as numbers, and replayed to the bit.

What is drawn is a value that a sample can hold. Reading and resizing pictures belong in `data.images`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

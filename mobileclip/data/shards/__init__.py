"""Shards: tar files of samples, reading and writing them, and the card of a data set.

What the members of a sample mean is for `data.samples`, and in which order shards are read for `data.loading`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches.

This package holds every step from shards to a batch, one subpackage per step. Modules that several steps share are next
to the subpackages. The offline preparation of data sets is in `mobileclip.datasets`. Models and losses do not belong
here.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

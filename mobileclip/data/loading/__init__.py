"""Shards to batches: the order of samples, decoding in worker processes, and resuming.

How a sample or a shard is stored does not belong here: it is for `data.samples` and `data.shards`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Datasets: what prepares data before a run: any form of data as samples, joins, scores and filters, what is in shards.

Each room here has one task; what a training run reads at every step is in `mobileclip.data`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

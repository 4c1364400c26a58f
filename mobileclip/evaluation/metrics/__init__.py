"""Metrics of embeddings, and their confidence intervals.

Only what computes with tensors and numbers belongs here: no model, no file, no data set.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

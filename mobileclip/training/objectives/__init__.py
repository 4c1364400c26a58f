"""Objectives: the loss of a model on a batch, in micro-batches that fit into memory.

The formulas are those of `losses`; what is done with the gradients does not belong here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

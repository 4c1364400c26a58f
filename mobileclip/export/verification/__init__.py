"""Measures an export against its model, checks it against tolerances, and keeps layers in float32 where needed.

The contract, which says what came of it, does not belong here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

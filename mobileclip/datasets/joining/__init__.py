"""Joins published reinforced shards with their images.

What finds, checks and matches the two belongs here; reading the outcome is for `data.loading`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

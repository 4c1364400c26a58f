"""Joins published reinforced shards with their images.

This subpackage finds, checks and matches images and reinforced samples; `mobileclip.data.loading` reads joined shards.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

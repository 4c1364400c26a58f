"""A tower as it is exported: preprocessing, the encoder with the precision of each layer, outputs.

What is written of it, and in which format, belongs in `targets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

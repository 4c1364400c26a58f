"""A tower as an export holds it: what comes in, the encoder in the precision of its layers, what goes out.

What is written of it, and in which format, belongs in `targets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

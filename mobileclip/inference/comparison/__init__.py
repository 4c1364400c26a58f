"""Compares two forms of a model: pictures, captions, times and distances.

Exports are compared in the same way. What is done with the result does not belong here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

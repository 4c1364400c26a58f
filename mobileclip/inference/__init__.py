"""Loads a model ready to encode, and finds its fastest form on this machine.

This subpackage runs models; training, evaluation and export have their own subpackages.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name != "attribution"]

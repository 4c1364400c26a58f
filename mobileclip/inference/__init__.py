"""Loads a model ready to encode, and finds the fastest backend of the model on this machine.

The subpackage only runs models; training, evaluation and export have separate subpackages.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name != "attribution"]

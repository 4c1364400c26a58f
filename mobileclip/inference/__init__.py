"""Loads a model ready to encode, and finds its fastest form on this machine.

What uses a model as it is belongs here; what trains, evaluates or exports one does not.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in {"attribution", "is_grouped", "weighted_layers"}]

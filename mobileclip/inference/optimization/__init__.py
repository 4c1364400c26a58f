"""Tries forms of a tower, times them, checks their embeddings, and keeps the fastest.

What makes one, in PyTorch, by its compiler or in OpenVINO, belongs here; how two forms are compared belongs in
`comparison`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

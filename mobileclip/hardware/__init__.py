"""Devices, precisions and CPU threads: one choice for every command.

What is asked of a machine before anything is computed belongs here; a form of a model that is faster on one, in
`inference.forms`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

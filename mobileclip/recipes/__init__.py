"""The published runs: their command line, the choices that they share, and the small world that tries them.

What a published run chooses belongs here; what carries out a run, in `training`, `reinforce` and `evaluation`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The published runs: their command line, the options that they share, and the small world that tries them.

Recipes have the options of published runs; `training`, `reinforce` and `evaluation` run them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The published runs: their command line, common options, and small data and models to try the runs.

Recipes contain the options of published runs; `training`, `reinforce` and `evaluation` run the recipes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Recipes of the published runs: command line, common options, and small data and models for test runs.

Recipes contain the options of published runs; `mobileclip.training`, `mobileclip.reinforce` and `mobileclip.evaluation`
run the recipes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

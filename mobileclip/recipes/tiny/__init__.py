"""The small world of `--tiny`: drawn scenes and shapes, small models, the first samples of a data set.

Everything in it is there to try a recipe in little time; nothing that a published run needs belongs here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

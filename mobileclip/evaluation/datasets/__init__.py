"""What a model is evaluated on: pictures with labels or captions, wherever they are.

What finds, reads and writes them belongs here; what a model is asked about them, in `evaluation.tasks`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

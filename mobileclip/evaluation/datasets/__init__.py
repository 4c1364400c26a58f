"""Data sets to evaluate on: images with labels or captions, on disk, on the web or in a bucket.

What finds, reads and writes them belongs here; what a model is asked about them, in `evaluation.tasks`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

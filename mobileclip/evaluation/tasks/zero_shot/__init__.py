"""Zero-shot classification and retrieval on a data set, with the published metrics.

What holds for any data set with labels or captions belongs here; a benchmark with rules of its own has
a place beside this package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

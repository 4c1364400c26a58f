"""Exports models to other runtimes, with contract, tokenizer, test vectors and a report.

What holds for every format belongs here; what one format alone needs, in `export.targets`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = list(_names)

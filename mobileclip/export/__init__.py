"""Exports models to other runtimes, with contract, tokenizer, test vectors and a report.

Code for all formats belongs in this package; code for a single format belongs in `export.targets`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = list(_names)

"""Reports: comparisons of models, tables and plots on one page.

What shows results belongs here; no model is asked here.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [name for name in _names if name != "language_table"]

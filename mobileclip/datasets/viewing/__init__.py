"""Shows what is in a data set: numbers of samples, and single ones as text and as a page.

What shows data belongs here; nothing here changes them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

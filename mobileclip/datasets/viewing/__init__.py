"""What is in a data set, for people: numbers, and pictures on a sheet.

What shows data belongs here; nothing here changes them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The local web server of an index, and the page that it shows.

What the page asks for and who may ask belongs here; how pictures are found does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

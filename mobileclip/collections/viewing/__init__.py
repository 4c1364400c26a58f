"""What was found as files for people: a sheet of pictures, a page of duplicates, and a file for a page in a browser.

What writes such a file belongs here; the server, with its page, is in `web`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

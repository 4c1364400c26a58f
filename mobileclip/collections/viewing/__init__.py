"""Writes results as files: contact sheets, pages of duplicates, and the data of a page in a browser.

What writes such a file belongs here; the server, with its page, is in `web`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Reads files for an index: finds them, opens the pictures in them, and encodes these.

What can be done without the index at hand belongs here; what enters the index does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

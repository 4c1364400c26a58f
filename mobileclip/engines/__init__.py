"""Runs units of work in this process, in several processes, or on a Ray cluster, with retries and resuming.

The caller defines the work; see `Work`. New engines belong in this package.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [name for name in _names if name != "fatal_of"]

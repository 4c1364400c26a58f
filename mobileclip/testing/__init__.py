"""Contract suites for blocks, encoders, losses and specs, of this library or your own.

Each suite is one function to call in a test. The function raises an error that describes the problem.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

"""Conformance tests for blocks, encoders, losses and specs, of this library or of your code.

Call one function per test, such as `check_block`. If a check fails, the function raises an `AssertionError`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

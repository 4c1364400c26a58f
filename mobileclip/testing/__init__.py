"""Contract suites for all parts of a kind, for tests of this library and of your own parts.

There is one function per kind of part; call it in a test. It raises an error with the problem.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

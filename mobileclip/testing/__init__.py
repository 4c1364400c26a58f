"""Contract suites: what every part of a kind must do, for tests of parts that are written elsewhere too.

One function a kind of part, which a test of one's own package calls. It raises an error that says what is wrong.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

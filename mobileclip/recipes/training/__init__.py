"""What the training recipes share: their command line, the published choices, and a small world to try them in.

What carries out a run belongs in `training`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

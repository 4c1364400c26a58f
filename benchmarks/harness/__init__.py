"""What every benchmark shares: cases that are measured, a runner, one table, and one file of results.

A process that measures one case imports what it needs of it alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

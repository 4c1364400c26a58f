"""An index on disk: rows in SQLite and embeddings beside them, written by one job at a time, while others read.

How rows are kept, joined and read belongs here; what they are made of does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

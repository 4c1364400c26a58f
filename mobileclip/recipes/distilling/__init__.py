"""The recipe of distilled text towers: its settings, its steps, its command line, and a small world to try it in.

What stores texts with a teacher's embeddings belongs in `reinforce`; the loop is that of `training`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = ["DistilSpec", "Kind", "distil", "text_run"]

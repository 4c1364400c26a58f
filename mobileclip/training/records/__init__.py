"""What a run leaves for people: metrics, curves, runs side by side, and skipped samples.

What a run needs to go on belongs in `checkpoints`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What a fine-tuning run does, one after the other: it opens its tasks, trains, scores, and writes its report.

What of a model moves, and how fast, belongs in `training.finetuning`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

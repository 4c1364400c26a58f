"""The report of a fine-tuning, and what scores a model on its tasks.

What is fine-tuned, and how, belongs in `training.finetuning`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

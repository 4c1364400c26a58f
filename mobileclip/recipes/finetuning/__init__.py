"""The fine-tuning recipe's command line, and a small world to try it in.

What is fine-tuned, and how, belongs in `training.finetuning`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [name for name in _names if name not in {"evaluate_task", "summary", "table", "write_report"}]

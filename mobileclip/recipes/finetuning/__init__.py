"""The fine-tuning recipe's command line, and a small world to try it in.

What is fine-tuned, and how, belongs in `training.finetuning`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = [
    "TEMPLATE",
    "Command",
    "World",
    "finetune_and_report",
    "run_recipe",
    "shrink",
    "tiny_model",
    "write_model",
    "write_new_shapes",
    "write_old_tasks",
    "write_shapes",
]

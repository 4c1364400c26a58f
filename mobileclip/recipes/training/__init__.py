"""What the training recipes share: their command line, the published choices, and a small world to try them in.

What carries out a run belongs in `training`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = [
    "Given",
    "as_released",
    "as_released_b",
    "as_released_dfndr2b",
    "following_training",
    "long_training",
    "measured_on",
    "mobileclip2_run",
    "mobileclip_run",
    "run_recipe",
    "shallow",
    "step_memory",
    "tiny_run",
    "titled",
    "vit_b16_12m_run",
    "with_data",
    "with_drop_path",
    "with_loss",
]

"""What the training recipes share: their command line, the published choices, and a small world to try them in.

What carries out a run belongs in `training`.
"""

from mobileclip.recipes.training.command import run_recipe
from mobileclip.recipes.training.following import Given, following_training
from mobileclip.recipes.training.memory import step_memory
from mobileclip.recipes.training.published import (
    as_released,
    as_released_dfndr2b,
    long_training,
    mobileclip2_run,
    mobileclip_run,
    titled,
    vit_b16_12m_run,
    with_data,
    with_drop_path,
    with_loss,
)
from mobileclip.recipes.training.tiny import tiny_run
from mobileclip.recipes.training.validation import measured_on

__all__ = [
    "Given",
    "as_released",
    "as_released_dfndr2b",
    "following_training",
    "long_training",
    "measured_on",
    "mobileclip2_run",
    "mobileclip_run",
    "run_recipe",
    "step_memory",
    "tiny_run",
    "titled",
    "vit_b16_12m_run",
    "with_data",
    "with_drop_path",
    "with_loss",
]

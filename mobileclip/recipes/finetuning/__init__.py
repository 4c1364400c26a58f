"""The fine-tuning recipe's command line, and a small world to try it in.

What is fine-tuned, and how, belongs in `training.finetuning`.
"""

from mobileclip.recipes.finetuning.command import Command, finetune_and_report, run_recipe
from mobileclip.recipes.finetuning.report import summary as summary, table as table, write_report as write_report
from mobileclip.recipes.finetuning.scoring import evaluate_task as evaluate_task
from mobileclip.recipes.finetuning.tiny import (
    TEMPLATE,
    World,
    shrink,
    tiny_model,
    write_model,
    write_new_shapes,
    write_old_tasks,
    write_shapes,
)

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

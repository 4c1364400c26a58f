"""The fine-tuning recipe's command line, and a small world to try it in.

What is fine-tuned, and how, belongs in `training.finetuning`.
"""

from mobileclip.recipes.finetuning.command import run_recipe

__all__ = ["run_recipe"]

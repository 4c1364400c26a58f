"""The fine-tuning recipe's command line, and a small world to try it in."""

from mobileclip.recipes.finetuning.command import run_recipe

__all__ = ["run_recipe"]

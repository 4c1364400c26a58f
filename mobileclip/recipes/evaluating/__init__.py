"""What the evaluation recipe is made of."""

from mobileclip.recipes.evaluating.command import Command, run_recipe

__all__ = ["Command", "run_recipe"]

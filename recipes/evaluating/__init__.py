"""What the evaluation recipe is made of."""

from .command import Command, run_recipe

__all__ = ["Command", "run_recipe"]

"""What the evaluation recipe is made of.

Its command line and a small world to try it in belong here; data sets, tasks and metrics, in `evaluation`.
"""

from mobileclip.recipes.evaluating.command import Command, run_recipe

__all__ = ["Command", "run_recipe"]

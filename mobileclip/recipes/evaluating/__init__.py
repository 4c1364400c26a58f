"""The evaluation recipe: its command line, and a small world to try it in.

Its command line and a small world to try it in belong here; data sets, tasks and metrics, in `evaluation`.
"""

from mobileclip.recipes.evaluating.command import Command, run_recipe

__all__ = ["Command", "run_recipe"]

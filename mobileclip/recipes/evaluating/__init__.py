"""The evaluation recipe: its command line, and a small world to try it in.

Data sets, tasks and metrics belong in `evaluation`.
"""

from mobileclip.recipes.evaluating.command import Command, run_recipe

__all__ = ["Command", "run_recipe"]

"""What the reinforcement recipes share: their command line, and a small world to try them in.

What is computed and stored belongs in `reinforce`.
"""

from mobileclip.recipes.reinforcing.command import Command, run_recipe

__all__ = ["Command", "run_recipe"]

"""What the reinforcement recipes share: their command line, and a small world to try them in."""

from .command import run_recipe

__all__ = ["run_recipe"]

"""What classifiers' recipes share: their command line, the published choices, and a small world to try them in."""

from .command import run_recipe
from .published import imagenet_run

__all__ = ["imagenet_run", "run_recipe"]

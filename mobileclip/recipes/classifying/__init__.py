"""What classifiers' recipes share: their command line, the published choices, and a small world to try them in.

What any training recipe needs belongs in `recipes.training`.
"""

from mobileclip.recipes.classifying.command import run_recipe
from mobileclip.recipes.classifying.published import imagenet_run

__all__ = ["imagenet_run", "run_recipe"]

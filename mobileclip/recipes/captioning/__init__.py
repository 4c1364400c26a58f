"""The recipes of captioners: their command line, the published choices, and a small world to try them in.

What any training recipe needs belongs in `recipes.training`; captioners at work, in `reinforce`.
"""

from mobileclip.recipes.captioning.command import run_recipe
from mobileclip.recipes.captioning.published import CaptionCost, caption_cost, coca_run, coca_vit_l14, finetuning_run

__all__ = ["CaptionCost", "caption_cost", "coca_run", "coca_vit_l14", "finetuning_run", "run_recipe"]

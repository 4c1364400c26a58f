"""The steps of fine-tuning, for `finetune.py`."""

from mobileclip.recipes.finetuning.run import run_recipe
from mobileclip.recipes.finetuning.spec import FinetuneSpec

__all__ = ["FinetuneSpec", "run_recipe"]

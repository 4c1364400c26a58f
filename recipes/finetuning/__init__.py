"""The steps of fine-tuning, for `finetune.py`."""

from .run import run_recipe
from .spec import FinetuneSpec

__all__ = ["FinetuneSpec", "run_recipe"]

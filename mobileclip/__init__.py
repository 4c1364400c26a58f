"""mobileclip: fast image-text models from composable blocks, and the reinforced training that makes them.

Only the names that most people type stand here; everything else is imported from its room.
"""

from mobileclip import extras
from mobileclip.blocks import build_model
from mobileclip.encoders import specs
from mobileclip.inference import optimize
from mobileclip.inference.loading import load
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.interop.release import create_model_and_transforms, get_tokenizer
from mobileclip.reparam import reparameterize

__all__ = [
    "ImageTextModel",
    "build_model",
    "create_model_and_transforms",
    "get_tokenizer",
    "load",
    "optimize",
    "reparameterize",
    "specs",
]
__version__ = extras.VERSION

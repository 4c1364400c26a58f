"""mobileclip: fast image-text models from composable blocks, and the reinforced training that makes them.

Only the names that most people type stand here; everything else is in its room, which is imported when it is asked for:
`mobileclip.losses.ReinforcedLoss` after `import mobileclip`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from mobileclip import extras
from mobileclip.blocks import build_model
from mobileclip.encoders import specs
from mobileclip.inference import optimize
from mobileclip.inference.loading import load
from mobileclip.inference.names import list_models
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.interop.release import create_model_and_transforms, get_tokenizer
from mobileclip.reparam import reparameterize

__all__ = [
    "ImageTextModel",
    "build_model",
    "create_model_and_transforms",
    "get_tokenizer",
    "list_models",
    "load",
    "optimize",
    "reparameterize",
    "specs",
]
__version__ = extras.VERSION
_ROOMS = (
    "collections",
    "data",
    "engines",
    "evaluation",
    "export",
    "losses",
    "recipes",
    "reinforce",
    "storage",
    "training",
)


def __getattr__(name: str) -> ModuleType:
    """Import a room when it is asked for."""
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})

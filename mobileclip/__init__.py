"""mobileclip: fast image-text models from composable blocks, and reinforced training for these models.

This package exports only the most used names; import everything else from the subpackages. The package imports names
and subpackages on first use, so `import mobileclip` does not import PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from mobileclip import extras

if TYPE_CHECKING:
    from mobileclip.blocks import build_model
    from mobileclip.encoders import specs
    from mobileclip.inference import optimize
    from mobileclip.inference.catalogue import list_models
    from mobileclip.inference.image_text_model import ImageTextModel
    from mobileclip.inference.loading import load
    from mobileclip.interop.ml_mobileclip import create_model_and_transforms, get_tokenizer
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
_PLACES = {
    "ImageTextModel": "inference.image_text_model",
    "build_model": "blocks",
    "create_model_and_transforms": "interop.ml_mobileclip",
    "get_tokenizer": "interop.ml_mobileclip",
    "list_models": "inference.catalogue",
    "load": "inference.loading",
    "optimize": "inference",
    "reparameterize": "reparam",
}
_MODULES = {"specs": "encoders.specs"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{_MODULES[name]}")
    elif name.isidentifier() and not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *(module.name for module in iter_modules(__path__))})

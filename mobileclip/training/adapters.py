"""Low-rank adapters in a model, merged into the weights beside them."""

from __future__ import annotations

import copy

from torch import nn


def merge_lora(model: nn.Module) -> None:
    """Add the adapters of `model` to the weights beside them and take them out: it is an ordinary model again.

    Outputs do not change, but for rounding. A model without adapters is left as it is.

    Args:
        model: changed in place.
    """
    adapted = _adapted(model)
    if not adapted:
        return
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name in adapted:
        layer = model.get_submodule(name)
        assert isinstance(layer, LoraLayer)
        assert isinstance(layer, BaseTunerLayer)
        layer.merge()
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent).add_module(own, layer.get_base_layer())
    del model.peft_config  # what the injection left on the model


def merged(model: nn.Module) -> nn.Module:
    """Return a model that folds: itself where it has no adapters, otherwise a copy with its adapters merged."""
    if not _adapted(model):
        return model
    model = copy.deepcopy(model)
    merge_lora(model)
    return model


def _adapted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(getattr(module, "lora_A", None), nn.Module)]

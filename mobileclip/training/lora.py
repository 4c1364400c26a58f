"""Low-rank adapters by peft (extra lora): train a few parameters, then merge them into the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
from attrs import validators
from torch import nn

from mobileclip.blocks import Attention, ConvFFN, FeedForward
from mobileclip.extras import needed
from mobileclip.strict import strict

if TYPE_CHECKING:
    from peft import LoraConfig


_PARTS: dict[type[nn.Module], tuple[str, ...]] = {
    Attention: ("qkv", "project"),
    FeedForward: ("fc1", "fc2"),
    ConvFFN: ("fc1", "fc2"),
}


_DEFAULT_EXTRAS = ("logit_scale",)


@attrs.frozen(kw_only=True, field_transformer=strict)
class LoraSpec:
    """Low-rank adapters of the projections of attention and feed-forward networks: `W x + s B A x`.

    Frozen towers get none. In convolutional stages, 1x1 convolutions of feed-forward networks get adapters; depthwise
    kernels (too small) and norms get none.

    Args:
        rank: rows of `A`, columns of `B`.
        alpha: `s` is `alpha / rank`; by default twice the rank.
        dropout: dropout rate of the inputs of `A`.
        extras: further trained parameters, by names of parameters or modules, such as `image_encoder.head.project`. A
            tower without logit scale ignores the default.

    Raises:
        ValueError: if a number is out of its range.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models".

    Examples:
        >>> FinetuningSpec(lora=LoraSpec(rank=4)).lora.extras  # trained beside the adapters
        ('logit_scale',)
    """

    rank: int = attrs.field(default=8, validator=validators.gt(0))
    alpha: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    dropout: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    extras: tuple[str, ...] = _DEFAULT_EXTRAS


def add_lora(model: nn.Module, spec: LoraSpec | None = None) -> None:
    """Add adapters to `model`; afterwards only adapters and extras require gradients.

    `B` is zero at first, so outputs do not change; torch's generator initialises `A`.

    Args:
        model: an image-text model, a tower, or a module that contains one; changed in place.
        spec: the adapters; None for the default ones.

    Raises:
        ValueError: if the model already has adapters, lacks an extra, or has no layer for adapters.
        ModuleNotFoundError: if `peft` is not installed.
    """
    with needed("fine-tuning with adapters", "lora"):
        from peft import inject_adapter_in_model
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ValueError("the model has adapters already; merge them with merge_lora first")
    spec = LoraSpec() if spec is None else spec
    extras = _extras(model, spec.extras)
    inject_adapter_in_model(_config(spec, _targets(model)), model)
    for parameter in extras:
        parameter.requires_grad_(True)


def _targets(model: nn.Module) -> list[str]:
    """Return the names of the layers that can be adapted and are not frozen."""
    targets = []
    for name, module in model.named_modules():
        parts = next((parts for cls, parts in _PARTS.items() if isinstance(module, cls)), ())
        targets += [
            f"{name}.{part}"
            for part in parts
            if all(parameter.requires_grad for parameter in module.get_submodule(part).parameters())
        ]
    if not targets:
        raise ValueError(
            "the model has no attention and no feed-forward network that is not frozen, so nothing to adapt"
        )
    return targets


def _config(spec: LoraSpec, targets: list[str]) -> LoraConfig:
    from peft import LoraConfig

    alpha = 2 * spec.rank if spec.alpha is None else spec.alpha
    return LoraConfig(
        r=spec.rank,
        lora_alpha=alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        bias="none",
    )


def _extras(model: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    parameters = dict(model.named_parameters())
    chosen: list[nn.Parameter] = []
    for extra in names:
        found = [parameter for name, parameter in parameters.items() if name == extra or name.startswith(f"{extra}.")]
        if not found and names != _DEFAULT_EXTRAS:
            raise ValueError(
                f"the model has no part {extra!r} to train beside the adapters; expected the name of a parameter or a "
                f"module, such as 'logit_scale' or 'text_encoder.project'"
            )
        chosen += found
    return chosen


def merge_lora(model: nn.Module) -> None:
    """Merge the adapters of `model` into its weights and remove them.

    Outputs change by rounding only. A model without adapters stays unchanged.

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

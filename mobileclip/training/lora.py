"""Low-rank adapters, through peft (extra lora): a small part is trained and merged into the weights afterwards."""

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
    """Adapters of low rank beside the projections of attention and of feed-forward networks: `W x + s B A x`.

    Those of a frozen tower get none. In convolutional stages the feed-forward networks' 1x1 convolutions are adapted as
    well; depthwise kernels, which have too few numbers to save any, and norms are not.

    Args:
        rank: rows of `A`, columns of `B`.
        alpha: `s` is `alpha / rank`; by default twice the rank.
        dropout: share of the inputs of `A` that is zeroed in training.
        extras: what is trained beside the adapters: names of parameters, or of modules with all below them, such as
            `image_encoder.head.project`. The default is left out where there is no logit scale, as in a lone tower.

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
    """Put adapters into `model`; nothing but them and the extras requires a gradient afterwards.

    `B` begins at zero, so the model's outputs do not change yet; `A` is drawn from torch's random numbers.

    Args:
        model: an image-text model, a tower, or what has one as a part; changed in place.
        spec: the adapters; None for the default ones.

    Raises:
        ValueError: if the model has adapters already, an extra is no part of it, or nothing in it can be adapted.
        ModuleNotFoundError: if `peft` is not there; the message says how to install it.
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

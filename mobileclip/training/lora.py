"""Low-rank adapters from peft (extra `lora`): train few parameters, then merge them into the weights."""

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
    """Low-rank adapters for the projections of attention and feed-forward networks: `W x` becomes `W x + s B A x`.

    Frozen towers get no adapters. In convolutional stages, only the 1x1 convolutions of feed-forward networks get
    adapters; depthwise kernels (too small) and norms do not.

    Args:
        rank: number of rows of `A` and columns of `B`.
        alpha: numerator of the scale `s = alpha / rank`; None for twice the rank.
        dropout: dropout probability on the inputs of `A`.
        extras: names of parameters or modules to train in addition to the adapters, such as
            `image_encoder.head.project`. `add_lora` ignores the default value if the model has no logit scale.

    Raises:
        ValueError: if `rank` or `alpha` is below 1, or `dropout` is outside [0, 1).

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models".

    Examples:
        >>> FinetuningSpec(lora=LoraSpec(rank=4)).lora.extras  # trained in addition to the adapters
        ('logit_scale',)
    """

    rank: int = attrs.field(default=8, validator=validators.gt(0))
    alpha: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    dropout: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    extras: tuple[str, ...] = _DEFAULT_EXTRAS


def add_lora(model: nn.Module, spec: LoraSpec | None = None) -> None:
    """Add low-rank adapters to `model`; afterwards only adapters and extras require gradients.

    `B` starts at zero, so the model's outputs do not change at first. PyTorch's random generator initialises `A`.

    Args:
        model: an image-text model, a tower, or a module that contains a tower; modified in place.
        spec: settings of the adapters; None for `LoraSpec()`.

    Raises:
        ValueError: if the model already has adapters, lacks one of the extras, or has no trainable layer for adapters.
        ModuleNotFoundError: if `peft` is not installed.
    """
    with needed("fine-tuning with adapters", "lora"):
        from peft import inject_adapter_in_model
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ValueError("the model already has adapters; merge them with merge_lora first")
    spec = LoraSpec() if spec is None else spec
    extras = _extras(model, spec.extras)
    inject_adapter_in_model(_config(spec, _targets(model)), model)
    for parameter in extras:
        parameter.requires_grad_(True)


def _targets(model: nn.Module) -> list[str]:
    """Return the names of the layers that can get adapters and are not frozen."""
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
            "the model has no attention or feed-forward layers to adapt, or all of these layers are frozen"
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
                f"the model has no parameter or module {extra!r} to train in addition to the adapters; expected a name "
                "such as 'logit_scale' or 'text_encoder.project'"
            )
        chosen += found
    return chosen


def merge_lora(model: nn.Module) -> None:
    """Merge the adapters of `model` into its weights, and remove the adapters.

    Outputs change only by rounding. A model without adapters stays unchanged.

    Args:
        model: model, modified in place.
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
    del model.peft_config  # left on the model by the injection


def merged(model: nn.Module) -> nn.Module:
    """Return a model that can be folded: `model` itself if it has no adapters, else a copy with merged adapters."""
    if not _adapted(model):
        return model
    model = copy.deepcopy(model)
    merge_lora(model)
    return model


def _adapted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(getattr(module, "lora_A", None), nn.Module)]

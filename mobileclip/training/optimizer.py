"""AdamW with weight decay, by default on matrices and kernels only, and the registry of optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Literal, get_args

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.registry import Registry
from mobileclip.reparam import LayerScale
from mobileclip.serialization import open_family
from mobileclip.strict import repeated, strict

Kind = Literal["weights", "positions", "class_tokens", "layer_scales"]
"""What weight decay may apply to: matrices and kernels; positional embeddings; class tokens; layer scales."""

WEIGHTS_ALONE: tuple[Kind, ...] = ("weights",)

_MULTIPLYING = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class OptimizerSpec(ABC):
    """Base class of every optimiser's spec: a value that builds the optimiser of a model's parameters.

    Examples:
        >>> class SGDSpec(OptimizerSpec):
        ...     def build(self, model: nn.Module) -> torch.optim.Optimizer:
        ...         return torch.optim.SGD(model.parameters(), lr=0.0)
        >>> type(SGDSpec().build(nn.Linear(4, 2))).__name__
        'SGD'
    """

    __slots__ = ()

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of every parameter that requires a gradient.

        The loop sets the learning rate of every group: the schedule's, times the group's `rate_scale` where it has one.

        Raises:
            ValueError: if nothing requires a gradient.
        """


optimizers: Registry[type[OptimizerSpec]] = Registry("optimizer")
"""Optimizers by name; third parties add theirs here or by an entry point in `mobileclip.optimizer`."""
open_family(OptimizerSpec, optimizers)


@optimizers.register("adamw")
@attrs.frozen(kw_only=True, field_transformer=strict)
class AdamWSpec(OptimizerSpec):
    """AdamW with decoupled weight decay; the learning rate is the schedule's.

    Args:
        beta1: decay of the running mean of the gradient, per step.
        beta2: decay of the running mean of its square, per step.
        eps: added to the root of the latter.
        weight_decay: times the learning rate, the fraction that a decayed weight loses per step.
        decayed: what weight decay applies to: `weights`, `positions`, `class_tokens`, `layer_scales`. Norms, biases and
            the logit scale are never decayed.

    Source: MobileCLIP, table 12.

    Differs: The released scripts leave out what has one dimension, and what is called like a norm or a bias. They so
        decay positions, class tokens of timm's towers, and layer scales, which have several dimensions.

    Examples:
        >>> optimizer = AdamWSpec().build(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)))
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]  # a matrix; the others
        [(1, 0.2), (3, 0.0)]
    """

    beta1: float = attrs.field(default=0.9, validator=[validators.ge(0), validators.lt(1)])
    beta2: float = attrs.field(default=0.95, validator=[validators.ge(0), validators.lt(1)])
    eps: float = attrs.field(default=1e-8, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.2, validator=validators.ge(0))
    decayed: tuple[Kind, ...] = attrs.field(default=WEIGHTS_ALONE)

    @decayed.validator
    def _check_decayed(self, _: object, value: tuple[str, ...]) -> None:
        if unknown := [one for one in value if one not in get_args(Kind)]:
            raise ValueError(f"decayed names {unknown[0]!r}; choose among {', '.join(get_args(Kind))}")
        if twice := repeated(value):
            raise ValueError(f"decayed names {twice[0]!r} twice; name it once")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimiser of every parameter that requires a gradient, fused; learning rates start at 0.

        Raises:
            ValueError: if nothing requires a gradient.
        """
        decayed, kept = decay_groups(model, self.decayed)
        if not decayed and not kept:
            raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
        groups = [
            {"params": list(decayed.values()), "weight_decay": self.weight_decay},
            {"params": list(kept.values()), "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, times the group's `rate_scale` where it has one.

    Args:
        optimizer: such as an `OptimizerSpec` builds, whose rates are zero at first.
        learning_rate: of a step, at least 0.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_scale", 1.0)


def decay_groups(
    model: nn.Module, decayed: Collection[Kind] = WEIGHTS_ALONE
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the trainable parameters by name: those that weight decay applies to, and the others.

    By default, matrices and kernels are decayed alone. Norms, biases, scales (one number per channel, or one at all),
    class tokens and positional embeddings are not: weight decay is not a useful regulariser of them.

    Args:
        model: any module.
        decayed: what weight decay applies to.
    """
    chosen: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    seen: set[Tensor] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            # One that is used in several places is decayed as in the first of them.
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                group = chosen if _kind(module, name, parameter) in decayed else kept
                group[f"{prefix}.{name}" if prefix else name] = parameter
    return chosen, kept


def _kind(module: nn.Module, name: str, parameter: Tensor) -> Kind | None:
    """Return what a parameter is; None for norms, biases and other scales, which are never decayed."""
    if isinstance(module, _MULTIPLYING):
        return "weights" if name == "weight" else None
    if isinstance(module, LayerScale):
        return "layer_scales"
    if "position" in name:
        return "positions"
    if name == "class_token":
        return "class_tokens"
    # A free parameter of one number per channel is a scale.
    return None if parameter.numel() == max(parameter.shape, default=1) else "weights"

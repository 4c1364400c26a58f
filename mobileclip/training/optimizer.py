"""Optimisers: kinds of parameters, weight decay and layer-wise learning rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import singledispatch
from itertools import groupby
from typing import Any, Literal, get_args

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.encoders import Classifier, DualEncoder, MCi, TextEncoder, ViT
from mobileclip.registry import Registry
from mobileclip.reparam import LayerScale
from mobileclip.serialization import register_spec_base
from mobileclip.strict import repeated, strict

Kind = Literal["weights", "positions", "class_tokens", "layer_scales"]
"""Kinds of parameters with optional weight decay: matrices or kernels, positions, class tokens, layer scales."""

Granularity = Literal["block", "stage"]
"""Unit that counts as a layer of an MCi tower."""

WEIGHTS_ALONE: tuple[Kind, ...] = ("weights",)

_MULTIPLYING = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class OptimizerSpec(ABC):
    """Base class of optimiser specs, which build an optimiser for a model's parameters.

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
        """Return the optimiser for every parameter that requires a gradient.

        The training loop sets the learning rate of every group: the schedule's rate, times `rate_scale` if the
        group has one.

        Raises:
            ValueError: if no parameter requires a gradient.
        """


optimizers: Registry[type[OptimizerSpec]] = Registry("optimizer")
"""Optimiser specs by name; other packages register here or with an entry point in `mobileclip.optimizer`."""
register_spec_base(OptimizerSpec, optimizers)


@optimizers.register("adamw")
@attrs.frozen(kw_only=True, field_transformer=strict)
class AdamWSpec(OptimizerSpec):
    """AdamW with decoupled weight decay; the schedule sets the learning rate.

    Args:
        beta1: decay rate of the running mean of the gradient, per step.
        beta2: decay per step of the running mean of the squared gradient.
        eps: constant added to the square root of the mean squared gradient, against division by zero.
        weight_decay: coefficient of weight decay; a step multiplies each decayed weight by `1 - learning_rate *
            weight_decay`.
        decayed: kinds of parameters with weight decay: `weights`, `positions`, `class_tokens`, `layer_scales`. Norms,
            biases and the logit scale never have weight decay.

    Source: MobileCLIP, table 12.

    Differs: Apple's scripts exempt a parameter from weight decay if it has one dimension, or the name of a norm or
        bias. The scripts therefore do apply weight decay to position embeddings, class tokens of timm's towers, and
        layer scales with several dimensions.

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
            raise ValueError(
                f"decayed contains the unknown kind {unknown[0]!r}; choose from {', '.join(get_args(Kind))}"
            )
        if twice := repeated(value):
            raise ValueError(f"decayed contains {twice[0]!r} twice; list each kind once")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return a fused AdamW over all parameters that require gradients; learning rates start at 0.

        Raises:
            ValueError: if no parameter requires a gradient, or for the reasons listed in `rate_scales`.
        """
        groups = _groups(model, self._rate_scales(model), self.weight_decay, self.decayed)
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)

    def _rate_scales(self, model: nn.Module) -> Mapping[str, float]:
        """Return learning-rate factors by parameter name; parameters without an entry have the factor 1."""
        del model
        return {}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, multiplied by the group's `rate_scale` if it has one.

    Args:
        optimizer: an optimiser, for example from `OptimizerSpec.build`.
        learning_rate: learning rate of a step, at least 0.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_scale", 1.0)


def decay_groups(
    model: nn.Module, decayed: Collection[Kind] = WEIGHTS_ALONE
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the trainable parameters by name, separated into parameters with and without weight decay.

    By default, only matrices and kernels have weight decay. Weight decay is not a useful regulariser for norms, biases,
    scales, class tokens and position embeddings.

    Args:
        model: any module.
        decayed: kinds of parameters with weight decay.
    """
    chosen: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for parameter, (name, kind) in parameter_table(model).items():
        if parameter.requires_grad:
            (chosen if kind in decayed else kept)[name] = parameter
    return chosen, kept


def parameter_table(model: nn.Module) -> dict[Tensor, tuple[str, Kind | None]]:
    """Return the name and kind of every parameter; a shared parameter has only its first name.

    Examples:
        >>> [of for of in parameter_table(nn.Linear(4, 2)).values()]
        [('weight', 'weights'), ('bias', None)]
    """
    table: dict[Tensor, tuple[str, Kind | None]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            table.setdefault(parameter, (name, _kind(module, name.rpartition(".")[2], parameter)))
    return table


def _kind(module: nn.Module, name: str, parameter: Tensor) -> Kind | None:
    """Return a parameter's kind; None for norms, biases and other scales, which never have weight decay."""
    if isinstance(module, _MULTIPLYING):
        return "weights" if name == "weight" else None
    if isinstance(module, LayerScale):
        return "layer_scales"
    if "position" in name:
        return "positions"
    if name == "class_token":
        return "class_tokens"
    # A bare parameter with one number per channel is a scale.
    return None if parameter.numel() == max(parameter.shape, default=1) else "weights"


@singledispatch
def tower_layers(tower: nn.Module) -> list[list[str]]:
    """Return the layers of a tower from input to output, each as a stage name followed by module names.

    Register towers of other libraries with `tower_layers.register`. A layer is `[stage, name, ...]`, where a name is a
    module's or a parameter's. The layers of a stage must be consecutive, and the names must cover every parameter.

    Raises:
        ValueError: if the tower's class is not registered.
    """
    raise ValueError(
        f"the order of the layers in {type(tower).__name__} is not known; register a function for its class with "
        "mobileclip.training.finetuning.tower_layers.register"
    )


@tower_layers.register
def _(tower: MCi) -> list[list[str]]:
    layers = [["stem", "stem"]]
    for index, stage in enumerate(tower.stages):
        label, prefix = f"stage {index}", f"stages.{index}"
        parts = dict(stage.named_children())
        # The layers before a stage's first block have the same learning rate as this block.
        entrance = [f"{prefix}.{name}" for name in parts if name != "blocks"]
        for number, _ in enumerate(parts["blocks"].children()):
            layers.append([label, *entrance, f"{prefix}.blocks.{number}"])
            entrance = []
    return [*layers, ["head", "head"]]


@tower_layers.register
def _(tower: ViT) -> list[list[str]]:
    entrance = ["stem", "class_token", "position", "norm_before"]
    return [["stem", *entrance], *_transformer_layers(tower.layers), ["head", "norm", "project"]]


@tower_layers.register
def _(tower: TextEncoder) -> list[list[str]]:
    entrance = ["token_embedding", "position"]
    return [["stem", *entrance], *_transformer_layers(tower.layers), ["head", "norm", "project"]]


def _transformer_layers(layers: nn.Module) -> list[list[str]]:
    return [[f"layer {index}", f"layers.{index}"] for index, _ in enumerate(layers.children())]


def rate_scales(model: nn.Module, decay: float, *, by: Granularity = "block") -> dict[str, float]:
    """Return learning-rate factors by parameter name: `decay ** n` for a parameter with `n` layers above it.

    In each tower, the head has the factor 1, the layer below the head has the factor `decay`, and so on down to the
    stem or the token embedding. Parameters outside towers, such as the logit scale or a classifier's linear layer, have
    the factor 1.

    Args:
        model: a tower, an image-text model, a classifier, or a module that contains a tower, such as a detector.
        decay: factor per layer, in (0, 1]; 1 gives equal learning rates. Deep towers need values close to 1: over the
            46 layers of MCi2, a decay of 0.9 gives a factor of 0.009 at the stem.
        by: unit that counts as a layer of an MCi tower: a `block` or a `stage`. In a transformer, the unit is always a
            transformer layer.

    Raises:
        ValueError: if `decay` is outside (0, 1], the model has no tower, or a tower's class is not registered in
            `tower_layers`.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning", section 3.2; Bao et al., "BEiT", appendix G, for
        image towers.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the decay of learning rates per layer must be in (0, 1], got {decay}")
    names = {parameter: name for parameter, (name, _) in parameter_table(model).items()}
    scales = dict.fromkeys(names.values(), 1.0)
    towers = _towers(model)
    if not towers:
        raise ValueError(
            f"layer-wise learning rates need a tower of this library, but {type(model).__name__} neither is nor "
            "contains one; register your tower class with mobileclip.training.finetuning.tower_layers.register"
        )
    for tower in towers.values():
        layers = _layers(tower, by)
        depths = {name: depth for depth, (_, *below) in enumerate(layers) for name in below}
        for name, parameter in tower.named_parameters():
            above = [part for part in depths if f"{name}.".startswith(f"{part}.")]
            assert above, f"{name} belongs to no layer of {type(tower).__name__}"
            scales[names[parameter]] = decay ** (len(layers) - 1 - depths[max(above, key=len)])
    return scales


def _towers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the towers in a module by name; the module itself may be a tower."""
    kinds = {DualEncoder: ("image_encoder", "text_encoder"), Classifier: ("image_encoder",)}
    found: dict[str, nn.Module] = {}
    for prefix, module in model.named_modules():
        for name in next((names for kind, names in kinds.items() if isinstance(module, kind)), ()):
            found[f"{prefix}.{name}" if prefix else name] = module.get_submodule(name)
        is_known = tower_layers.dispatch(type(module)) is not tower_layers.dispatch(object)
        # Submodules of a tower belong to its layers, even if their own class is registered as well.
        if is_known and not any(prefix.startswith(f"{one}.") or not one for one in found):
            found[prefix] = module
    return found


def _layers(tower: nn.Module, by: Granularity) -> list[list[str]]:
    layers = tower_layers(tower)
    if by == "block":
        return layers
    grouped = groupby(layers, key=lambda layer: layer[0])
    return [[stage, *(name for _, *names in members for name in names)] for stage, members in grouped]


def layer_rate_groups(
    model: nn.Module,
    decay: float,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decayed: Collection[Kind] = WEIGHTS_ALONE,
    by: Granularity = "block",
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimiser, in order from the input to the output.

    A group has `params`, its own `lr` for PyTorch's optimisers and schedulers, `weight_decay`, and `rate_scale`, which
    multiplies the schedule's learning rate in `mobileclip.training.train`. For each learning rate, parameters with and
    without weight decay (see `decay_groups`) are in separate groups.

    Args:
        model: a tower, or a module that contains a tower; see `rate_scales`.
        decay: learning-rate factor per layer, in (0, 1]; see `rate_scales`.
        lr: learning rate of the layers nearest to the output; the learning rate of a group is `lr * rate_scale`.
        weight_decay: coefficient of weight decay for the kinds in `decayed`.
        decayed: kinds of parameters with weight decay.
        by: unit that counts as a layer of an MCi tower; see `rate_scales`.

    Raises:
        ValueError: if no parameter requires a gradient, or for the reasons listed in `rate_scales`.

    Examples:
        >>> tower = mobileclip.build_model("mci0")
        >>> optimizer = torch.optim.AdamW(layer_rate_groups(tower, 0.5, lr=1e-4, by="stage"))
        >>> sorted({group["lr"] for group in optimizer.param_groups})[-2:]
        [5e-05, 0.0001]
    """
    return _groups(model, rate_scales(model, decay, by=by), weight_decay, decayed, lr=lr)


def _groups(
    model: nn.Module, scales: Mapping[str, float], weight_decay: float, decayed: Collection[Kind], *, lr: float = 0.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups, one for each pair of learning rate and weight decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter, (name, kind) in parameter_table(model).items():
        if parameter.requires_grad:
            own_decay = weight_decay if kind in decayed else 0.0
            groups.setdefault((scales.get(name, 1.0), -own_decay), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
    return [
        {"params": groups[scale, decay], "lr": lr * scale, "rate_scale": scale, "weight_decay": -decay}
        for scale, decay in sorted(groups)
    ]


@optimizers.register("layer_decay_adamw")
@attrs.frozen(kw_only=True, field_transformer=strict)
class LayerDecayAdamWSpec(AdamWSpec):
    """AdamW with layer-wise learning rates: the schedule's rate times a factor that decreases towards the input.

    Args:
        rate_decay: ratio of a layer's learning rate to the rate of the next layer towards the output, in (0, 1].
        rate_layers: unit that counts as a layer of an MCi tower: a `block` or a `stage`.

    Source: Bao et al., "BEiT", appendix G.

    Examples:
        >>> from mobileclip.encoders import DualEncoder, MCtSpec, ViTSpec
        >>> image, text = ViTSpec(width=16, depth=1, num_heads=2), MCtSpec(width=16, depth=0, num_heads=2)
        >>> optimizer = LayerDecayAdamWSpec(rate_decay=0.5).build(DualEncoder(image.build(), text.build()))
        >>> sorted({group["rate_scale"] for group in optimizer.param_groups})  # text: embedding, two layers, head
        [0.125, 0.25, 0.5, 1.0]
    """

    rate_decay: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    rate_layers: Granularity = attrs.field(default="block", validator=validators.in_(("block", "stage")))

    def _rate_scales(self, model: nn.Module) -> Mapping[str, float]:
        return rate_scales(model, self.rate_decay, by=self.rate_layers)

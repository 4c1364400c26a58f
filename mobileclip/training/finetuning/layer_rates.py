"""Learning rates by depth: the layers near the input, which hold what all tasks share, move least."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import singledispatch
from itertools import groupby
from typing import Any, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.encoders import Classifier, DualEncoder, MCi, TextEncoder, ViT
from mobileclip.strict import strict
from mobileclip.training.optimizer import WEIGHTS_ALONE, AdamWSpec, Kind, decay_groups, optimizers

Granularity = Literal["block", "stage"]


@singledispatch
def tower_layers(tower: nn.Module) -> list[list[str]]:
    """Return the parts of a tower from input to output: for each layer, its stage and the names of its modules.

    Other towers than this library's join with `tower_layers.register`. A layer is `[stage, name, ...]`; layers of one
    stage follow each other; names are of modules or parameters, and every parameter lies below one of them.

    Raises:
        ValueError: if the tower is of a class that is not registered.
    """
    raise ValueError(
        f"the order of the layers of a {type(tower).__name__} is not known; register a function for its class with "
        f"mobileclip.training.finetuning.tower_layers.register"
    )


@tower_layers.register
def _(tower: MCi) -> list[list[str]]:
    layers = [["stem", "stem"]]
    for index, stage in enumerate(tower.stages):
        label, prefix = f"stage {index}", f"stages.{index}"
        parts = dict(stage.named_children())
        # What leads into a stage moves with its first block.
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
    """Return for every parameter of `model` what its learning rate is multiplied with: `decay^(layers above it)`.

    In each tower on its own: the head has 1, the layer below `decay`, and so on down to the stem or the token
    embedding. What belongs to no tower, such as the logit scale, a classifier's linear layer or a detector's pyramid,
    has 1.

    Args:
        model: a tower, an image-text model, a classifier, or what any of these is a part of, such as a detector.
        decay: in (0, 1]; 1 gives all one rate. Per layer, so a deep tower wants one nearer to 1: the 46 layers of MCi2
            take 0.9 to 0.009 at the stem.
        by: what counts as a layer of an MCi tower: a `block`, or a whole `stage`. Layers of transformers are one each.

    Raises:
        ValueError: if the decay is out of its range, there is no tower, or the order of a tower's layers is not known.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning", section 3.2; Bao et al., "BEiT", appendix G, for
        image towers.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the decay of learning rates per layer lies in (0, 1], got {decay}")
    scales = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    towers = _towers(model)
    if not towers:
        raise ValueError(
            f"learning rates by layer need a tower of this library, alone or as a part, and {type(model).__name__} has "
            "none; register another tower's layers with mobileclip.training.finetuning.tower_layers.register"
        )
    for prefix, tower in towers.items():
        layers = _layers(tower, by)
        for parameter, depth in _depths(tower, layers):
            scales[f"{prefix}.{parameter}" if prefix else parameter] = decay ** (len(layers) - 1 - depth)
    return scales


def _towers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the towers in a module, itself maybe, by name: those of a model, and those on their own."""
    kinds: dict[type[nn.Module], tuple[str, ...]] = {
        DualEncoder: ("image_encoder", "text_encoder"),
        Classifier: ("image_encoder",),
    }
    found: dict[str, nn.Module] = {}
    for prefix, module in model.named_modules():
        for name in next((names for kind, names in kinds.items() if isinstance(module, kind)), ()):
            found[f"{prefix}.{name}" if prefix else name] = module.get_submodule(name)
        is_known = tower_layers.dispatch(type(module)) is not tower_layers.dispatch(object)
        # What a tower is made of, should it be of such a class, has the order of the tower.
        if is_known and not any(prefix.startswith(f"{one}.") or not one for one in found):
            found[prefix] = module
    return found


def _layers(tower: nn.Module, by: Granularity) -> list[list[str]]:
    layers = tower_layers(tower)
    if by == "block":
        return layers
    grouped = groupby(layers, key=lambda layer: layer[0])
    return [[stage, *(name for _, *names in members for name in names)] for stage, members in grouped]


def _depths(tower: nn.Module, layers: list[list[str]]) -> Iterator[tuple[str, int]]:
    places = {name: depth for depth, (_, *names) in enumerate(layers) for name in names}
    for name, _ in tower.named_parameters():
        parts = name.split(".")
        above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        place = next((prefix for prefix in above if prefix in places), None)
        assert place is not None, f"{name} belongs to no layer of {type(tower).__name__}"
        yield name, places[place]


def layer_rate_groups(
    model: nn.Module,
    decay: float,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decayed: Collection[Kind] = WEIGHTS_ALONE,
    by: Granularity = "block",
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimiser, from the input's side to the output's.

    A group has `params`, its own `lr`, which optimisers and schedules of PyTorch start from, `weight_decay`, and
    `rate_scale`, what multiplies the schedule's rate in `mobileclip.training.train`: one group for each rate and for
    what is decayed and what is not (see `decay_groups`).

    Args:
        model: as `rate_scales` takes it.
        decay: as `rate_scales` takes it.
        lr: learning rate of the layers nearest to the output; a group's is this times its `rate_scale`.
        weight_decay: of the parameters that are decayed.
        decayed: what weight decay applies to.
        by: as `rate_scales` takes it.

    Raises:
        ValueError: see `rate_scales`; or if nothing requires a gradient.

    Examples:
        >>> tower = mobileclip.build_model("mci0")
        >>> optimizer = torch.optim.AdamW(layer_rate_groups(tower, 0.5, lr=1e-4, by="stage"))
        >>> sorted({group["lr"] for group in optimizer.param_groups})[-2:]
        [5e-05, 0.0001]
    """
    scales = rate_scales(model, decay, by=by)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameters, own_decay in zip(decay_groups(model, decayed), (weight_decay, 0.0), strict=True):
        for name, parameter in parameters.items():
            groups.setdefault((scales[name], own_decay), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
    return [
        {"params": groups[scale, own_decay], "lr": lr * scale, "rate_scale": scale, "weight_decay": own_decay}
        for scale, own_decay in sorted(groups)
    ]


@optimizers.register("layer_decay_adamw")
@attrs.frozen(kw_only=True, field_transformer=strict)
class LayerDecayAdamWSpec(AdamWSpec):
    """AdamW whose learning rates fall towards the input: every group's is the schedule's times its `rate_scale`.

    Args:
        rate_decay: factor from one layer to the one below, in (0, 1].
        rate_layers: what counts as a layer of an MCi tower: a `block`, or a whole `stage`.

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

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return the optimiser of every parameter that requires a gradient, fused; learning rates start at 0.

        Raises:
            ValueError: see `layer_rate_groups`.
        """
        groups = layer_rate_groups(
            model, self.rate_decay, lr=0.0, weight_decay=self.weight_decay, decayed=self.decayed, by=self.rate_layers
        )
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)

"""Layers that stay in float32 where an export in fewer bits would not pass its gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.export.spec import Precision

_LARGEST_HALF = torch.finfo(torch.float16).max
# Where the data at hand reach this part of the range, other data may leave it.
_MARGIN = 0.25


@attrs.frozen(kw_only=True)
class Fallback:
    """Layers of a tower that stay in float32.

    Args:
        name: which they are, for the report; empty where none are.
        layers: names of modules in the tower.
    """

    name: str = ""
    layers: frozenset[str] = frozenset()


def fallbacks(encoder: nn.Module, inputs: Tensor, precision: Precision) -> Iterator[Fallback]:
    """Yield what to keep in float32, nothing first: the next is for an export with the former that fails a gate.

    - fp16: the layers whose inputs or outputs come near the end of its range, where there are any.
    - int8: convolutions of a group for every few channels (depthwise ones have one scale for all channels of what
      comes in, and few products to average its rounding over); then the first and the last layer as well.

    Args:
        encoder: folded, in float32.
        inputs: what the encoder takes, a batch; for fp16.
        precision: of the export.
    """
    yield Fallback()
    if precision == "fp16":
        wide = _wide_layers(encoder, inputs)
        if wide:
            yield Fallback(name="layers beyond the range of float16", layers=wide)
    if precision == "int8":
        grouped = {name for name, layer in weighted_layers(encoder) if getattr(layer, "groups", 1) > 1}
        if grouped:
            yield Fallback(name="grouped convolutions", layers=frozenset(grouped))
        names = [name for name, _ in weighted_layers(encoder)]
        ends = grouped | {names[0], names[-1]}
        yield Fallback(name="grouped convolutions, the first and the last layer", layers=frozenset(ends))


def weighted_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers of a tower by name, in the order in which they compute."""
    return [(name, module) for name, module in encoder.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def keep_in_float32(encoder: nn.Module, layers: frozenset[str]) -> None:
    """Turn layers of a tower in half precision back into float32 ones, in place.

    Every layer takes what comes in its own type, so that values beyond float16 go from one such layer to the next as
    they are; what lies between them computes in the wider type.
    """
    if not layers:
        return
    for name, module in encoder.named_modules():
        parameter = next(module.parameters(recurse=False), None)
        if parameter is None or not isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm)):
            continue
        if name in layers:
            module.float()
        module.register_forward_pre_hook(_in_its_type)


def _in_its_type(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = cast("Tensor", module.weight)
    return tuple(tensor.to(weight.dtype) for tensor in inputs)


@torch.no_grad()
def _wide_layers(encoder: nn.Module, inputs: Tensor) -> frozenset[str]:
    """Return the layers whose inputs or outputs come near the end of float16's range."""
    wide: set[str] = set()

    def remember(name: str) -> None:
        def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            del module
            if any(float(tensor.abs().max()) > _MARGIN * _LARGEST_HALF for tensor in (*args, output)):
                wide.add(name)

        hooks.append(module.register_forward_hook(look))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in encoder.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm)):
            remember(name)
    try:
        encoder(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(wide)

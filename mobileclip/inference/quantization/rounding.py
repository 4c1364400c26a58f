"""A tower that computes in float32 what an int8 runtime computes of it, with parameters for its ranges.

Ranges are tensors by name, as a file has them: for a layer, `LAYER.weight`, the steps of its output channels, and
`LAYER.input` and `LAYER.output`, a step and a zero point each. A layer without `LAYER.weight` stays in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mobileclip.inference.layers import weighted_layers
from mobileclip.inference.quantization.grid import LARGEST_VALUE, LARGEST_WEIGHT, on_grid
from mobileclip.reparam import children_by_name, with_children

_HALF = 0.5

Ranges = Mapping[str, Tensor]


class ValueRounding(nn.Module):
    """Values on a grid of uint8: one step and one zero point, both learned.

    The step is learned by the logarithm of its growth, so that it stays above zero, an optimiser's step is a part of
    it, and what was read from a file is the same to the bit; the zero point as a part of all steps.

    Shape:
        any, to the same.

    Args:
        values: the step and the zero point, `(2,)`.

    Source: Jain et al. 2020, Trained quantization thresholds, for the logarithm.
    """

    start: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        step, zero = values.detach().float().unbind()
        self.register_buffer("start", step)
        self.growth = nn.Parameter(torch.zeros(()))
        self.zero = nn.Parameter(zero / LARGEST_VALUE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        return on_grid(x, *self._range(), least=0, largest=LARGEST_VALUE)

    def stored(self) -> Tensor:
        """Return the step and the zero point, `(2,)`."""
        step, zero = self._range()
        return torch.stack([step, zero.round()]).detach()

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.start * self.growth.exp(), self.zero * LARGEST_VALUE

    def hold(self) -> None:
        """Bring the zero point back onto the grid, behind a step that may have taken it off."""
        self.zero.data.clamp_(0, 1)


class WeightRounding(nn.Module):
    """Weights on a grid of int8 without a zero point: a step for each output channel, and which neighbour each takes.

    Each weight moves by half a step at most before it is rounded, so that it lands on one of the two numbers of the
    grid that it lies between.

    Shape:
        a weight, `(outputs, ...)`, to the same.

    Args:
        steps: `(outputs,)`.
        weight: what is rounded.

    Source: Nagel et al. 2020, Up or down? Adaptive rounding, for the choice.
    Differs: gradients pass the rounding unchanged, in place of a sigmoid that a growing penalty hardens.
    """

    start: Tensor

    def __init__(self, steps: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", steps.detach().float().reshape(-1, *(1,) * (weight.ndim - 1)))
        self.growth = nn.Parameter(torch.zeros_like(self.start))
        self.shift = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights."""
        step = self._step()
        moved = weight + self.shift * step
        return on_grid(moved, step, torch.zeros(()), least=-LARGEST_WEIGHT, largest=LARGEST_WEIGHT)

    def stored(self) -> Tensor:
        """Return the steps, `(outputs,)`."""
        return self._step().detach().flatten()

    def hold(self) -> None:
        """Bring each weight back between its neighbours, behind a step that may have taken it further."""
        self.shift.data.clamp_(-_HALF, _HALF)

    def _step(self) -> Tensor:
        return self.start * self.growth.exp()


class RoundedLayer(nn.Module):
    """A convolution or a linear layer as int8 runtimes compute it: input, weights and output are rounded.

    The bias, which runtimes hold in 32 bits, makes up for what rounding moves on the average: it learns a shift, in
    units of 64 steps of a weight times one of the input.

    Shape:
        as the layer's.

    Args:
        layer: its weights and its bias are shared, and learn nothing.
        name: of the layer.
        ranges: of a tower; without `NAME.output`, the output is not rounded.
    """

    unit: Tensor

    def __init__(self, layer: nn.Module, name: str, ranges: Ranges) -> None:
        super().__init__()
        self.layer = layer
        self.input = ValueRounding(ranges[f"{name}.input"])
        self.rounding = WeightRounding(ranges[f"{name}.weight"], cast("Tensor", layer.weight))
        self.output = ValueRounding(ranges[f"{name}.output"]) if f"{name}.output" in ranges else None
        unit = LARGEST_WEIGHT * ranges[f"{name}.weight"] * ranges[f"{name}.input"][0]
        self.register_buffer("unit", unit.detach().float())
        bias = cast("Tensor | None", layer.bias)
        self.bias_shift = None if bias is None else nn.Parameter(torch.zeros_like(self.unit))
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives."""
        weights = {"weight": self.rounded_weight()}
        if (bias := self.shifted_bias()) is not None:
            weights["bias"] = bias
        y: Tensor = torch.func.functional_call(self.layer, weights, (self.input(x),))
        return y if self.output is None else self.output(y)

    @property
    def weight(self) -> Tensor:
        """The layer's own weights: towers of transformers ask for their type."""
        return cast("Tensor", self.layer.weight)

    def rounded_weight(self) -> Tensor:
        """Return the weights on their grid."""
        rounded: Tensor = self.rounding(cast("Tensor", self.layer.weight).detach())
        return rounded

    def shifted_bias(self) -> Tensor | None:
        """Return the bias as it is by now; None where the layer has none."""
        if self.bias_shift is None:
            return None
        shifted: Tensor = cast("Tensor", self.layer.bias).detach() + self.unit * self.bias_shift
        return shifted


def rounded(tower: nn.Module, ranges: Ranges) -> nn.Module:
    """Return a tower whose layers round as an int8 runtime does.

    Args:
        tower: folded, in evaluation mode, in float32; the other one shares its weights.
        ranges: of its layers, see above.

    Raises:
        ValueError: if there are ranges of a layer that the tower does not have.
    """
    known = {name for name, _ in weighted_layers(tower)}
    named = {name.rpartition(".")[0] for name in ranges}
    if unknown := sorted(named - known):
        raise ValueError(
            f"there are ranges of {len(unknown)} layers that the tower does not have, {unknown[0]!r} first; "
            "give those that were found for this tower, folded"
        )
    chosen = {name for name in known if f"{name}.weight" in ranges}
    return with_layers(tower, lambda name, layer: RoundedLayer(layer, name, ranges) if name in chosen else layer)


def with_layers(tower: nn.Module, change: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Return a tower with other convolutions and linear layers; it shares all the rest, and is no layer itself.

    Args:
        tower: in evaluation mode.
        change: from the name of a layer, and the layer, to what stands in its place; called once for each.
    """
    changed = {layer: change(name, layer) for name, layer in weighted_layers(tower)}
    return _replaced(tower, changed)


def _replaced(module: nn.Module, changed: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a module with others in the place of some; what is used in several places stays one module."""
    if module in changed:
        return changed[module]
    children = children_by_name(module)
    others = {name: other for name, child in children.items() if (other := _replaced(child, changed)) is not child}
    changed[module] = with_children(module, others) if others else module
    return changed[module]


def rounded_layers(tower: nn.Module) -> Iterator[tuple[str, RoundedLayer]]:
    """Yield the layers that round by name, each once."""
    return ((name, layer) for name, layer in tower.named_modules() if isinstance(layer, RoundedLayer))


def roundings(tower: nn.Module) -> Iterator[tuple[str, ValueRounding | WeightRounding]]:
    """Yield what rounds in a tower, by the names of ranges."""
    for name, layer in rounded_layers(tower):
        for kind, part in (("input", layer.input), ("weight", layer.rounding), ("output", layer.output)):
            if part is not None:
                yield f"{name}.{kind}", part


def ranges_of(tower: nn.Module) -> dict[str, Tensor]:
    """Return the ranges of a tower that `rounded` gave, as they are by now."""
    return {name: part.stored() for name, part in roundings(tower)}


def quantised_layers(ranges: Ranges) -> set[str]:
    """Return the names of the layers that there are ranges of."""
    return {name.removesuffix(".weight") for name in ranges if name.endswith(".weight")}


def with_rounded_weights(tower: nn.Module, tuned: nn.Module) -> nn.Module:
    """Return a copy of a tower with weights that lie on their grid, and the biases learned; it carries its `ranges`.

    In float32 it is a tower as any other, and in int8 its weights are not rounded again.

    Args:
        tower: folded, in float32; it stays as it is.
        tuned: what `rounded` gave of it.
    """
    found = copy.deepcopy(tower)
    layers = dict(weighted_layers(found))
    with torch.no_grad():
        for name, layer in rounded_layers(tuned):
            cast("nn.Parameter", layers[name].weight).copy_(layer.rounded_weight())
            if (bias := layer.shifted_bias()) is not None:
                cast("nn.Parameter", layers[name].bias).copy_(bias)
    found.ranges = ranges_of(tuned)  # type: ignore[assignment]
    return found

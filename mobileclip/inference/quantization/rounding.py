"""Towers that compute in float32 what an int8 runtime computes of them, and what exporters make of their ranges."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import attrs
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from mobileclip.inference.forms import DepthwiseConvs, SingleQueryAttention
from mobileclip.reparam import children_by_name, with_children


def weighted_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers of a tower by name, in the order in which they compute.

    Left out are those that only their owner may compute with: PyTorch's own attention does not call its layers, and
    open_clip's text tower asks for the class of its projection.
    """
    owned = (
        one if isinstance(one, nn.MultiheadAttention) else getattr(one, "text_projection", None)
        for one in encoder.modules()
    )
    uncalled = {part for one in owned if isinstance(one, nn.Module) for part in one.modules()}
    return [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in uncalled
    ]


def is_grouped(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution in several groups."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1


LARGEST_VALUE = 255
"""Of what goes into a layer or comes out, in steps above the least: uint8. As int8, with its zero point, 128 less."""

LARGEST_WEIGHT = 64
"""Of a weight, in steps from zero: processors without VNNI add pairs of products in 16 bits, which more would saturate,
silently. A file for every runtime cannot ask which processor will read it."""

_HALF = 0.5


def on_grid(x: Tensor, step: Tensor, zero: Tensor, *, least: int, largest: int) -> Tensor:
    """Return `x` as ONNX's DequantizeLinear gives back what QuantizeLinear made of it, to the bit.

    `q = clamp(round(x / step) + zero, least, largest)` and `(q - zero) * step`, halves rounded to even. Gradients pass
    the rounding unchanged, so that the step's is `q - zero - x / step` within the range and `q - zero` outside, the
    zero point's nothing within and `-step` outside.

    Shape:
        that of `x`; the step broadcasts to it, the zero point is one number.

    Args:
        x: float32.
        step: above zero.
        zero: the step that zero is at; any number, rounded to an integer.
        least: of the integers.
        largest: of the integers.

    Source: Esser et al. 2020, Learned step size quantization; Bhalgat et al. 2020, LSQ+, for the zero point.
    """
    y: Tensor = _OnGrid.apply(x, step, zero, (least, largest))  # type: ignore[no-untyped-call]
    return y


class _OnGrid(torch.autograd.Function):
    """The formula of `on_grid` in few passes over memory, which is what it takes its time with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, ends: tuple[int, int]) -> Tensor:
        """Return the rounded numbers."""
        # Sums of integers are exact, so that the zero point may move the ends in place of the numbers.
        whole = zero.round().item()
        ctx.ends = (ends[0] - whole, ends[1] - whole)
        y = (x / step).round_().clamp_(*ctx.ends).mul_(step)
        ctx.save_for_backward(x, y, step, zero)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, the step and the zero point."""
        (gradient,) = gradients
        x, y, step, zero = ctx.saved_tensors
        least, largest = ctx.ends
        steps = x / step
        # What is rounded to an end is within; this is `gradient` there, and nothing outside.
        of_x = torch.ops.aten.hardtanh_backward(gradient, steps, least - _HALF, largest + _HALF)
        of_step = of_zero = None
        # Differences before sums: what is no gradient at all must be zero, which Adam would else make a step of.
        if ctx.needs_input_grad[1]:
            of_step = (gradient * y).div_(step).addcmul_(steps, of_x, value=-1).sum_to_size(step.shape)
        if ctx.needs_input_grad[2]:
            of_zero = torch.sub(of_x, gradient, out=steps).sum().reshape(zero.shape) * step
        return of_x, of_step, of_zero, None


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


# What runtimes call int8. Weights from a file stay within 64 steps, so that no runtime cuts them.
_LARGEST_INT8 = 127
_OPS = torch.ops.quantized_decomposed
# Axis, ends and type.
_OF_WEIGHTS = (0, -_LARGEST_INT8, _LARGEST_INT8, torch.int8)
_OF_BIASES = (0, -(2**31), 2**31 - 1, torch.int32)


def ranges_of_form(form: nn.Module, ranges: Ranges | None = None) -> dict[str, Tensor]:
    """Return the ranges of a tower by the names of layers in what was made of it; nothing where it carries none.

    `load_model` gives towers that carry those of their file as `ranges`, by the names of the folded tower, and
    `reparameterize`, copies and the functions of `inference.forms` leave them there. Where a form computes a layer by
    several layers of some of its outputs (`NAME.convs.N`, `query` and `key_value` of `qkv`), each has the ranges of
    what goes in and comes out, and its own steps. Layers without `NAME.weight` among them stay in float32.

    Args:
        form: a tower as it was loaded, folded; or what `with_one_token` and `with_depthwise_convs` made of it.
        ranges: of the tower as it was loaded; those that `form` carries by default.

    Raises:
        ValueError: if the form lacks a layer that there are ranges of; the message names it.
    """
    given = cast("Mapping[str, Tensor]", getattr(form, "ranges", {})) if ranges is None else ranges
    found: dict[str, Tensor] = {}
    known = set()
    for name, layer in weighted_layers(form):
        source, chosen = _source_of(form, name)
        if f"{source}.weight" not in given:
            continue
        known.add(source)
        steps = given[f"{source}.weight"][chosen]
        if len(steps) != len(cast("Tensor", layer.weight)):
            raise ValueError(
                f"{name} has {len(cast('Tensor', layer.weight))} outputs, and its ranges are of {len(steps)}; give "
                "ranges that were found for this tower, folded"
            )
        found[f"{name}.weight"] = steps
        found |= {f"{name}.{kind}": given[key] for kind in ("input", "output") if (key := f"{source}.{kind}") in given}
    if lost := sorted({name.rpartition(".")[0] for name in given} - known):
        raise ValueError(
            f"there are ranges of {len(lost)} layers that this form of the tower does not have, {lost[0]!r} first; "
            "give those that were found for this tower, folded"
        )
    return found


def _source_of(form: nn.Module, name: str) -> tuple[str, slice]:
    """Return which layer of the tower a layer of a form is of, and which of its outputs it gives."""
    parent, _, own = name.rpartition(".")
    whole, _, last = parent.rpartition(".")
    if last == "convs" and isinstance(form.get_submodule(whole), DepthwiseConvs):
        return whole, slice(int(own), None, len(list(form.get_submodule(parent).children())))
    if isinstance(form.get_submodule(parent), SingleQueryAttention) and own != "project":
        dim = len(cast("Tensor", form.get_submodule(f"{parent}.query").weight))
        return f"{parent}.qkv", slice(0, dim) if own == "query" else slice(dim, None)
    return name, slice(None)


@attrs.frozen(kw_only=True)
class Int8Form:
    """The representation of int8 in a runtime: signedness, and how weights and biases are stored.

    Args:
        signed: what goes into layers and comes out is int8, its zero points 128 less; uint8 otherwise.
        stores_weights: weights are int8 in the program already. Otherwise they are float, and the exporter rounds them.
        stores_biases: biases are in int32, in steps of the products; float otherwise.
    """

    signed: bool = False
    stores_weights: bool = False
    stores_biases: bool = False


def with_int8_layers(form: nn.Module, ranges: Ranges, how: Int8Form | None = None) -> nn.Module:
    """Return a tower whose layers quantise and dequantise by PyTorch's `quantized_decomposed`, which exporters know.

    It gives what `rounded` gives, but for values that lie between two steps to the last digit: these operations
    multiply by the inverse of the step, where ONNX and `rounded` divide.

    Args:
        form: see `ranges_of_form`; in evaluation mode, in float32. The other one shares its weights.
        ranges: by the names of its layers.
        how: what the operations are like; uint8 on float weights by default.
    """
    how = how or Int8Form()
    return with_layers(form, lambda name, one: Int8Layer(one, name, ranges, how) if f"{name}.weight" in ranges else one)


class Int8Layer(nn.Module):
    """A convolution or a linear layer whose input, weights and output are quantised and dequantised.

    Weights are int8 without a zero point, one step for each output channel, what goes in and comes out is of 8 bits.

    Shape:
        as the layer's.

    Args:
        layer: its weights are shared.
        name: of the layer.
        ranges: of a tower; without `NAME.output`, the output is not rounded.
        how: what the operations are like.
    """

    steps: Tensor
    zeros: Tensor
    steps_of_bias: Tensor

    def __init__(self, layer: nn.Module, name: str, ranges: Ranges, how: Int8Form) -> None:
        super().__init__()
        # What is of a part of a layer is a part of the layer's, and a program stores no parts.
        steps = ranges[f"{name}.weight"].detach().float().clone()
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int64))
        self._input = _Values.of(ranges[f"{name}.input"], signed=how.signed)
        output = ranges.get(f"{name}.output")
        self._output = None if output is None else _Values.of(output, signed=how.signed)
        self.layer = with_children(layer, {})
        weight, bias = cast("Tensor", layer.weight).detach(), cast("Tensor | None", layer.bias)
        if how.stores_weights:
            stored = _OPS.quantize_per_channel(weight, self.steps, self.zeros, *_OF_WEIGHTS)
            self.layer.weight = nn.Parameter(stored, requires_grad=False)
            if bias is not None:
                self.layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        if how.stores_biases and bias is not None:
            self.register_buffer("steps_of_bias", self._input.step * steps)
            stored = (bias.detach() / self.steps_of_bias).round().to(torch.int32)
            self.layer.bias = nn.Parameter(stored, requires_grad=False)
        self.training = False

    @property
    def weight(self) -> Tensor:
        """The weights in the type that the layer computes in: towers of transformers ask for it."""
        return cast("Tensor", self.layer.weight).to(self.steps.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives."""
        weight, bias = cast("Tensor", self.layer.weight), cast("Tensor | None", self.layer.bias)
        if weight.dtype != torch.int8:
            weight = _OPS.quantize_per_channel(weight, self.steps, self.zeros, *_OF_WEIGHTS)
        floats = {"weight": _OPS.dequantize_per_channel(weight, self.steps, self.zeros, *_OF_WEIGHTS)}
        if bias is not None and bias.dtype == torch.int32:
            floats["bias"] = _OPS.dequantize_per_channel(bias, self.steps_of_bias, self.zeros, *_OF_BIASES)
        y: Tensor = torch.func.functional_call(self.layer, floats, (self._input.rounded(x),))
        return y if self._output is None else self._output.rounded(y)


@attrs.frozen
class _Values:
    """Operations on what goes into a layer or comes out of it."""

    step: float
    zero: int
    least: int
    largest: int
    dtype: torch.dtype

    @classmethod
    def of(cls, values: Tensor, *, signed: bool) -> _Values:
        step, zero = values.tolist()
        shift = _LARGEST_INT8 + 1 if signed else 0
        return cls(step, int(zero) - shift, -shift, LARGEST_VALUE - shift, torch.int8 if signed else torch.uint8)

    def rounded(self, x: Tensor) -> Tensor:
        of_values = (self.step, self.zero, self.least, self.largest, self.dtype)
        y: Tensor = _OPS.dequantize_per_tensor(_OPS.quantize_per_tensor(x, *of_values), *of_values)
        return y

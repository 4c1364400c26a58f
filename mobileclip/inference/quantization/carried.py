"""Int8 ranges that a loaded tower carries, and the operations that exporters make of them.

form = with_depthwise_convs(with_one_token(load_model("int8.safetensors", tower="image")))
program = torch.export.export(with_int8_layers(form, ranges_of_form(form)), (images,))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import attrs
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from mobileclip.inference.forms import DepthwiseConvs, SingleQueryAttention
from mobileclip.inference.layers import weighted_layers
from mobileclip.inference.quantization.grid import LARGEST_VALUE
from mobileclip.inference.quantization.rounding import Ranges, with_layers
from mobileclip.reparam import with_children

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

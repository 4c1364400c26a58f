"""The ranges that a loaded tower carries, for what an exporter makes of it, and that as operations which runtimes know.

form = with_depthwise_convs(with_one_token(load_model("int8.safetensors", tower="image")))
program = torch.export.export(with_int8_layers(form, ranges_of_form(form)), (images,))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from mobileclip.inference.forms import DepthwiseConvs, SingleQueryAttention
from mobileclip.inference.layers import weighted_layers
from mobileclip.inference.quantization.grid import LARGEST_VALUE
from mobileclip.inference.quantization.rounding import Ranges, with_layers

# What runtimes call int8. Weights from a file stay within 64 steps, so that no runtime cuts them.
_LARGEST_INT8 = 127
_OPS = torch.ops.quantized_decomposed


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


def with_int8_layers(form: nn.Module, ranges: Ranges) -> nn.Module:
    """Return a tower whose layers quantise and dequantise by PyTorch's `quantized_decomposed`, which exporters know.

    It gives what `rounded` gives, but for values that lie between two steps to the last digit: these operations
    multiply by the inverse of the step, where ONNX and `rounded` divide.

    Args:
        form: see `ranges_of_form`; in evaluation mode, in float32. The other one shares its weights.
        ranges: by the names of its layers.
    """
    return with_layers(form, lambda name, one: Int8Layer(one, name, ranges) if f"{name}.weight" in ranges else one)


class Int8Layer(nn.Module):
    """A convolution or a linear layer whose input, weights and output are quantised and dequantised.

    Weights are int8 without a zero point, one step for each output channel, what goes in and comes out uint8.

    Shape:
        as the layer's.

    Args:
        layer: its weights are shared.
        name: of the layer.
        ranges: of a tower; without `NAME.output`, the output is not rounded.
    """

    steps: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Module, name: str, ranges: Ranges) -> None:
        super().__init__()
        self.layer = layer
        steps = ranges[f"{name}.weight"].detach().float()
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int64))
        self._input = _step_and_zero(ranges[f"{name}.input"])
        self._output = _step_and_zero(ranges[f"{name}.output"]) if f"{name}.output" in ranges else None
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives."""
        of_weight = (self.steps, self.zeros, 0, -_LARGEST_INT8, _LARGEST_INT8, torch.int8)
        weight = _OPS.dequantize_per_channel(_OPS.quantize_per_channel(self.layer.weight, *of_weight), *of_weight)
        y: Tensor = torch.func.functional_call(self.layer, {"weight": weight}, (_in_steps(x, *self._input),))
        return y if self._output is None else _in_steps(y, *self._output)


def _in_steps(x: Tensor, step: float, zero: int) -> Tensor:
    whole = _OPS.quantize_per_tensor(x, step, zero, 0, LARGEST_VALUE, torch.uint8)
    y: Tensor = _OPS.dequantize_per_tensor(whole, step, zero, 0, LARGEST_VALUE, torch.uint8)
    return y


def _step_and_zero(values: Tensor) -> tuple[float, int]:
    step, zero = values.tolist()
    return float(step), int(zero)

"""Quantises a tower to 8 bits: layers kept in float32, calibration ranges, weights, and the quantised graph."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import cast

import attrs
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.export.contract import prepare_pixels
from mobileclip.export.spec import Preprocess
from mobileclip.export.towers import TowerExport, input_of
from mobileclip.hardware import Precision
from mobileclip.inference.comparison import NUM_CROPS, Samples, calibration_crops
from mobileclip.inputs import ImageInput
from mobileclip.reparam import children_by_name, with_children

Layers = Iterable[tuple[str, nn.Module]]

# If values reach this limit (a quarter of the range of float16) for the measured inputs, values for other inputs may
# exceed the range.
_LARGEST_VALUE = torch.finfo(torch.float16).max / 4


def weighted_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers of a tower by name, in the order of computation.

    The function omits layers that cannot be replaced: `nn.MultiheadAttention` reads the weights of its layers without
    calling the layers, and open_clip's text tower checks the class of its projection.
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


def layers_in_float32(encoder: nn.Module, inputs: Tensor, precision: Precision) -> frozenset[str]:
    """Return the names of the layers that stay in float32.

    - float16: layers whose inputs or outputs reach a quarter of the range of float16.
    - int8, int8-weights: grouped convolutions. All input channels of a grouped convolution share one scale, and each
      output sums too few products to average out the rounding. In MobileCLIP-S0, grouped convolutions hold 2 % of the
      image tower's weights. Rounding only the grouped convolutions lowers the minimum cosine of images to 0.959;
      rounding only the other layers lowers the minimum cosine to 0.988.
    - float32, bfloat16: none.

    Args:
        encoder: folded encoder, in float32.
        inputs: a batch of encoder inputs, for finding the value ranges.
        precision: precision of the export.
    """
    if precision == "float16":
        kinds = (nn.Conv2d, nn.Linear, nn.LayerNorm)
        ends = _ends(encoder, [(name, one) for name, one in encoder.named_modules() if isinstance(one, kinds)], inputs)
        return frozenset(name for (name, _), values in ends.items() if values.abs().max() > _LARGEST_VALUE)
    if precision in ("int8", "int8-weights"):
        return frozenset(name for name, layer in weighted_layers(encoder) if getattr(layer, "groups", 1) > 1)
    return frozenset()


def calibration_inputs(encoder: nn.Module, samples: Samples, preprocess: Preprocess) -> Tensor:
    """Return inputs for an exported tower: about a hundred crops of images, or all captions.

    Shape:
        `(crops, 3, size, size)`, or `(captions, context_length)`, int64.

    Args:
        encoder: a tower, or a classifier.
        samples: images and captions for calibration; the function skips unreadable images.
        preprocess: input format of the exported image tower, such as `host`.

    Raises:
        ValueError: if no image is readable.
    """
    contract = input_of(encoder)
    if not isinstance(contract, ImageInput):
        return Tokenizer(contract)(samples.captions)
    crops = calibration_crops(samples.images, contract)
    if not len(crops):
        raise ValueError(
            f"none of the first {min(NUM_CROPS, len(samples.images))} images of {samples.name} is readable, so int8 "
            "cannot be calibrated; pass a different data set with --calibration"
        )
    return prepare_pixels(crops, contract, preprocess)


EVERY_OUTPUT = (nn.Conv2d, nn.Linear)
"""Layers with int8 outputs, for runtimes that compute a layer in int8 only if its output is int8 too."""

# Maximum of a layer's input or output as uint8, in steps. As int8, values and zero points are smaller by 128.
_LARGEST = 255
# Maximum of int8. Weights stay within `largest_weight` steps, so that no runtime saturates.
_LARGEST_INT8 = 127
_OPS = torch.ops.quantized_decomposed
# Axis, minimum, maximum and type.
_OF_WEIGHTS = (0, -_LARGEST_INT8, _LARGEST_INT8, torch.int8)
_OF_BIASES = (0, -(2**31), 2**31 - 1, torch.int32)
_BATCH, _TINY = 8, 1e-12


@attrs.frozen(kw_only=True)
class Int8Form:
    """The representation of int8 in a runtime: signedness, and the storage of weights and biases.

    Args:
        signed: whether the inputs and outputs of layers are int8, with zero points smaller by 128, rather than uint8.
        stores_weights: whether the program stores int8 weights; otherwise the program stores float weights, which the
            exporter rounds.
        stores_biases: whether biases are int32, in units of the input step times the weight step; otherwise biases are
            float.
        outputs: classes of the layers whose outputs are 8-bit.
        largest_weight: maximum absolute weight, in steps. For a file that suits all processors, the maximum is 64:
            processors without VNNI add pairs of products in 16 bits, where larger weights would saturate silently.
        float16_tables: whether the file stores token embeddings (half of the weights of a text tower) in float16.
    """

    signed: bool = False
    stores_weights: bool = False
    stores_biases: bool = False
    outputs: tuple[type[nn.Module], ...] = (nn.Conv2d,)
    largest_weight: int = 64
    float16_tables: bool = True


def graph_in_int8(tower: TowerExport, how: Int8Form) -> nn.Module:
    """Return a tower's graph with quantised convolutions and linear layers; all other operations are unchanged.

    The inputs of the quantised layers, and the outputs of layers in `how.outputs`, have one step and one zero point per
    tensor, for the range from the minimum to the maximum over the calibration data. Weights have no zero point and one
    step per output channel. Products of two activations, as in attention, stay float.

    Args:
        tower: tower with calibration data and the names of the layers that stay in float32.
        how: int8 representation of the runtime.

    Raises:
        ValueError: if there is no calibration data, or the tower computes values that are not finite.
    """
    graph = tower.graph(torch.float32)
    encoder = graph.get_submodule("encoder")
    layers = dict(weighted_layers(encoder))
    missing = tower.float32 - layers.keys()
    assert not missing, f"not found in the tower: {missing}"
    chosen = {name: layer for name, layer in layers.items() if name not in tower.float32}
    ends = _ends(graph, chosen.items(), tower.calibration)

    def values(name: str, kind: str) -> _Values:
        if (name, kind) not in ends:
            raise ValueError(
                f"the layer {name} has no calibration inputs, so its ranges are unknown; pass calibration data"
            )
        low, high = ends[name, kind]
        if not ends[name, kind].isfinite().all():
            raise ValueError(
                f"{name}.{kind} has values from {low} to {high}, which no 8-bit range can represent; check the model's "
                "weights"
            )
        return _Values.between(low, high, signed=how.signed)

    changed: dict[nn.Module, nn.Module] = {}
    for name, layer in chosen.items():
        output = values(name, "output")
        changed[layer] = Int8Layer(
            layer, values(name, "input"), output if isinstance(layer, how.outputs) else None, how
        )
    graph.encoder = _replaced(encoder, changed)
    if how.float16_tables:
        for module in graph.modules():
            if isinstance(module, nn.Embedding):
                module.half()
                module.register_forward_hook(lambda *called: called[-1].float())
    return graph.requires_grad_(requires_grad=False)


@torch.no_grad()
def _ends(encoder: nn.Module, layers: Layers, inputs: Tensor) -> dict[tuple[str, str], Tensor]:
    """Return the minimum (at most 0) and the maximum (at least 0) of each layer's inputs and outputs."""
    ends: dict[tuple[str, str], Tensor] = {}

    def see(name: str, taken: tuple[Tensor, ...], given: Tensor) -> None:
        for kind, values in (("input", taken[0]), ("output", given)):
            low, high = torch.aminmax(values)
            least, most = ends.get((name, kind), torch.zeros(2))
            ends[name, kind] = torch.stack([torch.minimum(least, low), torch.maximum(most, high)])  # NaN stays

    with ExitStack() as hooks:
        for name, layer in layers:
            hooks.enter_context(layer.register_forward_hook(lambda _, *seen, name=name: see(name, *seen)))
        for batch in torch.split(inputs, _BATCH):
            encoder(batch)
    return ends


def _replaced(module: nn.Module, changed: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a module with some submodules replaced; a submodule that occurs several times remains one module."""
    if module not in changed:
        children = children_by_name(module)
        others = {name: other for name, child in children.items() if (other := _replaced(child, changed)) is not child}
        changed[module] = with_children(module, others) if others else module
    return changed[module]


@attrs.frozen
class _Values:
    """Quantisation parameters of a layer's input or output."""

    step: float
    zero: int
    least: int
    largest: int
    dtype: torch.dtype

    @classmethod
    def between(cls, low: Tensor, high: Tensor, *, signed: bool) -> _Values:
        step = (high - low).clamp(min=_TINY) / _LARGEST
        zero = int((-low / step).round())
        shift = _LARGEST_INT8 + 1 if signed else 0
        return cls(float(step), zero - shift, -shift, _LARGEST - shift, torch.int8 if signed else torch.uint8)

    def rounded(self, x: Tensor) -> Tensor:
        of_values = (self.step, self.zero, self.least, self.largest, self.dtype)
        y: Tensor = _OPS.dequantize_per_tensor(_OPS.quantize_per_tensor(x, *of_values), *of_values)
        return y


class Int8Layer(nn.Module):
    """A layer whose input, weights and output are quantised and dequantised by operations that exporters recognise.

    Weights are int8 without a zero point and with one step per output channel. Inputs and outputs are 8-bit.

    Shape:
        input and output as for the layer.

    Args:
        layer: a convolution or a linear layer, which stays unchanged.
        given: quantisation parameters of the input.
        output: quantisation parameters of the output; None to leave the output unquantised.
        how: int8 representation of the runtime.
    """

    steps: Tensor
    zeros: Tensor
    steps_of_bias: Tensor

    def __init__(self, layer: nn.Module, given: _Values, output: _Values | None, how: Int8Form) -> None:
        super().__init__()
        weight, bias = cast("Tensor", layer.weight).detach(), cast("Tensor | None", layer.bias)
        steps = weight.float().flatten(1).abs().amax(1).clamp(min=_TINY) / how.largest_weight
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int64))
        self._input, self._output = given, output
        self.layer = with_children(layer, {})
        if how.stores_weights:
            stored = _OPS.quantize_per_channel(weight, self.steps, self.zeros, *_OF_WEIGHTS)
            self.layer.weight = nn.Parameter(stored, requires_grad=False)
            if bias is not None:
                self.layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        if how.stores_biases and bias is not None:
            self.register_buffer("steps_of_bias", given.step * steps)
            stored = (bias.detach() / self.steps_of_bias).round().to(torch.int32)
            self.layer.bias = nn.Parameter(stored, requires_grad=False)
        self.training = False

    @property
    def weight(self) -> Tensor:
        """The weights in the layer's compute dtype; towers of the transformers library read this attribute."""
        return cast("Tensor", self.layer.weight).to(self.steps.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer."""
        weight, bias = cast("Tensor", self.layer.weight), cast("Tensor | None", self.layer.bias)
        if weight.dtype != torch.int8:
            weight = _OPS.quantize_per_channel(weight, self.steps, self.zeros, *_OF_WEIGHTS)
        floats = {"weight": _OPS.dequantize_per_channel(weight, self.steps, self.zeros, *_OF_WEIGHTS)}
        if bias is not None and bias.dtype == torch.int32:
            floats["bias"] = _OPS.dequantize_per_channel(bias, self.steps_of_bias, self.zeros, *_OF_BIASES)
        y: Tensor = torch.func.functional_call(self.layer, floats, (self._input.rounded(x),))
        return y if self._output is None else self._output.rounded(y)


def dequantize_for_each_user(program: torch.export.ExportedProgram) -> None:
    """Change a program so that no two operations share a dequantisation, by copying shared dequantisations.

    XNNPACK can fuse a dequantisation with only one operation, and LiteRT's converter chooses the memory layout of a
    dequantisation for only one operation.
    """
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    graph = program.graph_module.graph
    for node in [node for node in graph.nodes if node.target is dequantize]:
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))
    program.graph_module.recompile()


@attrs.frozen(kw_only=True, eq=False)
class RoundedWeight:
    """A quantised weight: `(steps - zero) * scale`.

    Shape:
        steps: `(rows, columns)`, uint8.
        scale: `(rows, 1)`, float32.
        zero: `(rows, 1)`, uint8.

    Args:
        steps: quantised values in `[0, 255]`.
        scale: size of a step, per row.
        zero: quantised value that represents zero, per row.
    """

    steps: Tensor
    scale: Tensor
    zero: Tensor


def round_weight(rows: Tensor) -> RoundedWeight:
    """Quantise a weight with one range per row, from the row's minimum to its maximum; each range includes zero.

    Shape:
        `(rows, columns)`.

    Args:
        rows: float weight, with one row per output channel or per entry of a table.
    """
    rows = rows.detach().float()
    least, most = rows.amin(dim=1, keepdim=True).clamp_max(0), rows.amax(dim=1, keepdim=True).clamp_min(0)
    scale = ((most - least) / _LARGEST).clamp_min(_TINY)
    zero = (-least / scale).round()
    steps = ((rows / scale).round() + zero).clamp(0, _LARGEST)
    return RoundedWeight(steps=steps.to(torch.uint8), scale=scale, zero=zero.to(torch.uint8))

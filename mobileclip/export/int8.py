"""A tower in 8 bits: which layers stay in float32, the ranges, the weights, and the graph that quantises."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import cast

import attrs
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.export.contract import as_taken
from mobileclip.export.spec import Preprocess
from mobileclip.export.towers import TowerExport, input_of
from mobileclip.hardware import Precision
from mobileclip.inference.comparison import NUM_CROPS, Samples, calibration_crops
from mobileclip.inputs import ImageInput
from mobileclip.reparam import children_by_name, with_children

Layers = Iterable[tuple[str, nn.Module]]

# Where the inputs at hand reach this value, a quarter of the range of float16, other inputs may leave the range.
_LARGEST_VALUE = torch.finfo(torch.float16).max / 4


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


def layers_in_float32(encoder: nn.Module, inputs: Tensor, precision: Precision) -> frozenset[str]:
    """Return the names of the layers that stay in float32.

    - float16: layers whose inputs or outputs reach a quarter of its range.
    - int8, int8-weights: grouped convolutions. All their input channels share one scale, and there are few products to
      average the rounding over. In MobileCLIP-S0 they hold 2 % of the image tower's weights; rounded alone they bring
      the least cosine of its images down to 0.959, and all other layers together to 0.988.
    - float32, bfloat16: none.

    Args:
        encoder: folded, in float32.
        inputs: a batch of what the encoder takes.
        precision: of the export.
    """
    if precision == "float16":
        kinds = (nn.Conv2d, nn.Linear, nn.LayerNorm)
        ends = _ends(encoder, [(name, one) for name, one in encoder.named_modules() if isinstance(one, kinds)], inputs)
        return frozenset(name for (name, _), values in ends.items() if values.abs().max() > _LARGEST_VALUE)
    if precision in ("int8", "int8-weights"):
        return frozenset(name for name, layer in weighted_layers(encoder) if getattr(layer, "groups", 1) > 1)
    return frozenset()


def calibration_inputs(encoder: nn.Module, samples: Samples, preprocess: Preprocess) -> Tensor:
    """Return inputs as an exported tower takes them: about a hundred crops of images, or all captions.

    Shape:
        `(crops, 3, size, size)`, or `(captions, context_length)`, int64.

    Args:
        encoder: a tower, or a classifier.
        samples: images that cannot be read are left out, as they are where an export is measured.
        preprocess: of the export.

    Raises:
        ValueError: if no image can be read.
    """
    contract = input_of(encoder)
    if not isinstance(contract, ImageInput):
        return Tokenizer(contract)(samples.captions)
    crops = calibration_crops(samples.images, contract)
    if not len(crops):
        raise ValueError(
            f"none of the first {min(NUM_CROPS, len(samples.images))} images of {samples.name} can be read, so there "
            "is nothing to find ranges of values with; give another data set with --calibration"
        )
    return as_taken(crops, contract, preprocess)


EVERY_OUTPUT = (nn.Conv2d, nn.Linear)
"""For runtimes that compute a layer in int8 only where its output is int8 too."""

# Of what goes into a layer or comes out, in steps above the least: uint8. As int8, with its zero point, 128 less.
_LARGEST = 255
# What runtimes call int8. Weights stay within `largest_weight` steps, so that no runtime cuts them.
_LARGEST_INT8 = 127
_OPS = torch.ops.quantized_decomposed
# Axis, ends and type.
_OF_WEIGHTS = (0, -_LARGEST_INT8, _LARGEST_INT8, torch.int8)
_OF_BIASES = (0, -(2**31), 2**31 - 1, torch.int32)
_BATCH, _TINY = 8, 1e-12


@attrs.frozen(kw_only=True)
class Int8Form:
    """The representation of int8 in a runtime: signedness, and how weights and biases are stored.

    Args:
        signed: what goes into layers and comes out is int8, its zero points 128 less; uint8 otherwise.
        stores_weights: weights are int8 in the program already. Otherwise they are float, and the exporter rounds them.
        stores_biases: biases are in int32, in steps of the products; float otherwise.
        outputs: kinds of layers whose outputs are of 8 bits.
        largest_weight: in steps from zero. Processors without VNNI add pairs of products in 16 bits, which more than 64
            would saturate, silently; a file for every runtime cannot ask which processor will read it.
        float16_tables: whether tables that are looked up, of token embeddings, become float16: they are half of a text
            tower, and nothing is multiplied by them.
    """

    signed: bool = False
    stores_weights: bool = False
    stores_biases: bool = False
    outputs: tuple[type[nn.Module], ...] = (nn.Conv2d,)
    largest_weight: int = 64
    float16_tables: bool = True


def graph_in_int8(tower: TowerExport, how: Int8Form) -> nn.Module:
    """Return the graph of a tower whose convolutions and linear layers quantise; everything else stays as it is.

    What goes into them has one step and zero point, and so has what comes out of `how.outputs`, from the least to the
    largest value over the calibration data; weights have no zero point, and a step for each output channel. Products of
    two activations, those of attention, have no weights and stay float.

    Args:
        tower: calibration data, and the layers that stay in float32.
        how: what the operations are like.

    Raises:
        ValueError: if there is no calibration data, or the tower computes what is not finite.
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
            raise ValueError(f"nothing went by {name}: ranges are found with inputs, and there were none for it")
        low, high = ends[name, kind]
        if not ends[name, kind].isfinite().all():
            raise ValueError(
                f"{name}.{kind} has values from {low} to {high}, and no range of 8 bits holds them; check the model's "
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
    """Return the least and the largest value, and zero, of what goes into layers that compute and comes out of them."""
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
    """Return a module with others in the place of some; what is used in several places stays one module."""
    if module not in changed:
        children = children_by_name(module)
        others = {name: other for name, child in children.items() if (other := _replaced(child, changed)) is not child}
        changed[module] = with_children(module, others) if others else module
    return changed[module]


@attrs.frozen
class _Values:
    """Operations on what goes into a layer or comes out of it."""

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
    """A layer whose input, weights and output are quantised and dequantised by operations that exporters know.

    Weights are int8 without a zero point, one step for each output channel, what goes in and comes out is of 8 bits.

    Shape:
        as the layer's.

    Args:
        layer: a convolution or a linear layer; its weights are shared.
        given: how what goes in is rounded.
        output: how what comes out is rounded; None where it is not.
        how: what the operations are like.
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


def dequantize_for_each_user(program: torch.export.ExportedProgram) -> None:
    """Let every operation have what is dequantised for itself, in place.

    XNNPACK takes it over with the operation that it computes, and LiteRT's converter lays it out as that wants it.
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
    """A weight in steps: `(steps - zero) * scale`.

    Shape:
        steps: `(rows, columns)`, uint8. scale: `(rows, 1)`, float32. zero: `(rows, 1)`, uint8.

    Args:
        steps: in `[0, 255]`.
        scale: of a step.
        zero: the step that stands for zero.
    """

    steps: Tensor
    scale: Tensor
    zero: Tensor


def round_weight(rows: Tensor) -> RoundedWeight:
    """Return a weight in steps from the least to the largest value of each row, zero among them.

    Shape:
        `(rows, columns)`.

    Args:
        rows: one for each output channel, or for each entry of a table.
    """
    rows = rows.detach().float()
    least, most = rows.amin(dim=1, keepdim=True).clamp_max(0), rows.amax(dim=1, keepdim=True).clamp_min(0)
    scale = ((most - least) / _LARGEST).clamp_min(_TINY)
    zero = (-least / scale).round()
    steps = ((rows / scale).round() + zero).clamp(0, _LARGEST)
    return RoundedWeight(steps=steps.to(torch.uint8), scale=scale, zero=zero.to(torch.uint8))

"""A tower in 8 bits: which layers stay in float32, the ranges, the weights, and the graph that quantises."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.encoders import Classifier
from mobileclip.export.spec import Preprocess
from mobileclip.export.towers import TowerExport, as_taken, input_of
from mobileclip.hardware.precision import Precision
from mobileclip.inference.comparison import NUM_CROPS, Samples, calibration_crops
from mobileclip.inference.quantization import (
    LARGEST_WEIGHT,
    Int8Form,
    observed_ranges,
    quantised_layers,
    ranges_of_form,
    with_int8_layers,
)
from mobileclip.inference.quantization.ranges import watched
from mobileclip.inference.quantization.rounding import is_grouped, weighted_layers
from mobileclip.inputs import ImageInput

# Where the inputs at hand reach this value, a quarter of the range of float16, other inputs may leave the range.
_LARGEST_VALUE = torch.finfo(torch.float16).max / 4


def layers_in_float32(encoder: nn.Module, inputs: Tensor, precision: Precision) -> frozenset[str]:
    """Return the names of the layers that stay in float32.

    - float16: layers whose inputs or outputs reach a quarter of its range.
    - int8 with ranges that the model carries: layers without ranges.
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
        return frozenset(name for name, value in _largest_values(encoder, inputs).items() if value > _LARGEST_VALUE)
    layers = weighted_layers(encoder)
    if precision == "int8" and (given := quantised_layers(given_ranges(encoder))):
        return frozenset(name for name, _ in layers) - given
    if precision in ("int8", "int8-weights"):
        return frozenset(name for name, layer in layers if is_grouped(layer))
    return frozenset()


@torch.no_grad()
def _largest_values(encoder: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Return the largest absolute value that goes into each layer or comes out of it, by the layer's name."""
    largest: dict[str, float] = {}

    def look(name: str, taken: tuple[Tensor, ...], output: Tensor) -> None:
        largest[name] = max(largest.get(name, 0), *(float(tensor.abs().max()) for tensor in (*taken, output)))

    kinds = (nn.Conv2d, nn.Linear, nn.LayerNorm)
    with watched([(name, module) for name, module in encoder.named_modules() if isinstance(module, kinds)], look):
        encoder(inputs)
    return largest


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


_BATCH = 8
_ENCODER, _IMAGE = "encoder.", "image_encoder."


def given_ranges(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the ranges that a tower carries, by the names of its layers; nothing where it was not quantised.

    Args:
        encoder: a tower as it is exported, or a classifier, whose image tower may carry them.

    Raises:
        ValueError: if they are of layers that it has not, or of a layer without what goes into it.
    """
    if isinstance(encoder, Classifier):
        return {f"{_IMAGE}{name}": values for name, values in given_ranges(encoder.image_encoder).items()}
    ranges = ranges_of_form(encoder)
    lacking = sorted(name for name in quantised_layers(ranges) if f"{name}.input" not in ranges)
    if lacking:
        raise ValueError(
            f"the model has ranges of the weights of {lacking[0]!r}, and none of what goes into it; quantise the model "
            "anew, or load it from its file"
        )
    return ranges


def found_ranges(
    graph: nn.Module, inputs: Tensor, *, outputs: tuple[type[nn.Module], ...], largest_weight: int
) -> dict[str, Tensor]:
    """Return the ranges of the layers of a graph's encoder, from the least to the largest value, by their names in it.

    Args:
        graph: in float32.
        inputs: what the graph takes, examples.
        outputs: kinds of layers whose outputs have a range.
        largest_weight: of the steps.
    """
    found = observed_ranges(graph, lambda: torch.split(inputs, _BATCH), whole=True, outputs=outputs)
    finer = LARGEST_WEIGHT / largest_weight
    return {
        name.removeprefix(_ENCODER): values * finer if name.endswith(".weight") else values
        for name, values in found.items()
    }


_LARGEST = 255
_LEAST_SCALE = 1e-12


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
    scale = ((most - least) / _LARGEST).clamp_min(_LEAST_SCALE)
    zero = (-least / scale).round()
    steps = ((rows / scale).round() + zero).clamp(0, _LARGEST)
    return RoundedWeight(steps=steps.to(torch.uint8), scale=scale, zero=zero.to(torch.uint8))


EVERY_OUTPUT = (nn.Conv2d, nn.Linear)
"""For runtimes that compute a layer in int8 only where its output is int8 too."""


def graph_in_int8(
    tower: TowerExport,
    how: Int8Form,
    *,
    outputs: tuple[type[nn.Module], ...] = (nn.Conv2d,),
    largest_weight: int = LARGEST_WEIGHT,
    float16_tables: bool = True,
) -> nn.Module:
    """Return the graph of a tower whose convolutions and linear layers quantise; everything else stays as it is.

    What goes into them has one step and zero point, and so has what comes out of `outputs`; weights have no zero point,
    and a step for each output channel. A tower that carries ranges has exactly these; what it lacks of the outputs that
    the runtime needs, and all ranges of other towers, are found on the calibration data. Products of two activations,
    those of attention, have no weights and stay float.

    Args:
        tower: calibration data, and the layers that stay in float32.
        how: what the operations are like.
        outputs: kinds of layers whose outputs are of 8 bits.
        largest_weight: of the steps that are found: 64 where kernels for processors without VNNI add pairs of products
            in 16 bits, which eight bits of weights saturate, silently.
        float16_tables: whether tables that are looked up, of token embeddings, become float16: they are half of a text
            tower, and nothing is multiplied by them.
    """
    graph, kept = tower.graph(torch.float32), tower.float32
    missing = kept - {name for name, _ in weighted_layers(tower.encoder)}
    assert not missing, f"not found in the tower: {missing}"
    ranges = _ranges(tower, graph, outputs, largest_weight)
    chosen = {name: values for name, values in ranges.items() if name.rpartition(".")[0] not in kept}
    graph.encoder = with_int8_layers(graph.get_submodule("encoder"), chosen, how)
    if float16_tables:
        _look_up_in_float16(graph)
    return graph.requires_grad_(requires_grad=False)


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


def _ranges(
    tower: TowerExport, graph: nn.Module, outputs: tuple[type[nn.Module], ...], largest_weight: int
) -> dict[str, Tensor]:
    given = given_ranges(tower.encoder)
    quantised = quantised_layers(given)
    needed = {f"{name}.output" for name, layer in weighted_layers(tower.encoder) if isinstance(layer, outputs)}
    lacking = {name for name in needed - given.keys() if name.removesuffix(".output") in quantised}
    if given and not lacking:
        return given
    found = found_ranges(graph, tower.calibration, outputs=outputs, largest_weight=largest_weight)
    return given | {name: found[name] for name in lacking} if given else found


def _look_up_in_float16(graph: nn.Module) -> None:
    for module in graph.modules():
        if isinstance(module, nn.Embedding):
            module.half()
            module.register_forward_hook(_as_float32)


def _as_float32(module: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    del module, inputs
    return rows.float()

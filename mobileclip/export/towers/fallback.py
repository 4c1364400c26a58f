"""The layers of a tower that stay in float32 in an export of lower precision, by a rule for each precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.export.towers.ranges import given_ranges
from mobileclip.hardware.precision import Precision
from mobileclip.inference.layers import is_grouped, weighted_layers
from mobileclip.inference.quantization import quantised_layers
from mobileclip.inference.quantization.sensitivity import watched

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


def stored_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers of a tower whose weights are stored in few bits: tables of embeddings too."""
    tables = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Embedding)]
    return [*tables, *weighted_layers(encoder)]


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

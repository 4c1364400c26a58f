"""The ranges that a tower is quantised with: those that its model carries, and those that are found on examples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.encoders import Classifier
from mobileclip.inference.quantization import LARGEST_WEIGHT, observed_ranges, quantised_layers, ranges_of_form

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

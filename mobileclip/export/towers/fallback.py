"""Layers that stay in float32 where an export in lower precision would not pass its checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.export.towers.ranges import given_ranges
from mobileclip.export.towers.weights import round_weight
from mobileclip.hardware.precision import Precision
from mobileclip.inference.layers import is_grouped, weighted_layers
from mobileclip.inference.quantization import quantised_layers
from mobileclip.inference.quantization.sensitivity import each_alone, rounded_in_place, watched
from mobileclip.progress import track

_LARGEST_HALF = torch.finfo(torch.float16).max
# Where the data at hand reach this part of the range, other data may leave it.
_MARGIN = 0.25
# Of the layers that are not grouped, those that stay in float32 at the end; and the inputs that tell which lose most.
_SHARES, _FEW = {"an eighth": 1 / 8, "a quarter": 1 / 4}, 4
_STEPS, _LARGEST_INT8 = 255, 127


@attrs.frozen(kw_only=True)
class Fallback:
    """Layers of a tower that stay in float32.

    Args:
        name: which they are, for the report; empty where none are.
        layers: names of modules in the tower.
    """

    name: str = ""
    layers: frozenset[str] = frozenset()


def fallbacks(
    encoder: nn.Module, inputs: Tensor, precision: Precision, *, show_progress: bool = False
) -> Iterator[Fallback]:
    """Yield growing sets of layers to keep in float32, for exports that fail a check.

    - float16: the layers whose inputs or outputs leave its range, whatever the runtime here makes of them: another one
      may compute in float16 what this one does not. Then those, too, that come near its end.
    - int8 with ranges that the model carries: what it has no ranges of, and no more.
    - int8: grouped convolutions, first those of a group for every few channels: all channels that come in share one
      scale, and there are few products to average its rounding over. With MobileCLIP-S0's golden weights they alone
      bring the least cosine of images down to 0.959, all other layers together to 0.988.
    - int8-weights: grouped convolutions too. Tables of embeddings are layers as well.
    - Then, in every precision but float32, an eighth, and a quarter, of the other layers: those that turn the
      embeddings most when each is rounded alone. Which these are depends on the weights.

    Args:
        encoder: folded, in float32.
        inputs: what the encoder takes, a batch.
        precision: of the export.
        show_progress: whether to show how far the search for layers is.
    """
    kept: frozenset[str] = frozenset()
    named = ""
    if precision == "int8" and (given := quantised_layers(given_ranges(encoder))):
        kept = frozenset(name for name, _ in weighted_layers(encoder)) - given
        yield Fallback(name="layers that the model has no ranges of" if kept else "", layers=kept)
        return
    if precision == "float16":
        largest = _largest_values(encoder, inputs)
        beyond, near = (
            frozenset(name for name, value in largest.items() if value > part * _LARGEST_HALF) for part in (1, _MARGIN)
        )
        yield Fallback(name="layers beyond the range of float16", layers=beyond) if beyond else Fallback()
        if near:
            kept, named = near, "layers that come near the end of float16's range"
        if near != beyond:
            yield Fallback(name=named, layers=kept)
    else:
        yield Fallback()
    if precision == "float32":
        return
    grouped = grouped_convolutions(encoder)
    if precision in ("int8", "int8-weights") and grouped.layers:
        kept, named = grouped.layers, grouped.name
        yield grouped
    affected = most_affected(encoder, inputs[:_FEW], precision, excluded=kept, show_progress=show_progress)
    for share, part in _SHARES.items():
        worst = affected[: math.ceil(part * len(affected))]
        most = f"{named}, and {share} of the others" if named else f"{share} of the layers"
        yield Fallback(name=f"{most}: those that lose most", layers=kept | frozenset(worst))


def grouped_convolutions(encoder: nn.Module) -> Fallback:
    """Return what stays in float32 in int8 where no runtime here can say whether less would do."""
    layers = frozenset(name for name, layer in weighted_layers(encoder) if is_grouped(layer))
    return Fallback(name="grouped convolutions", layers=layers)


def stored_layers(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers of a tower whose weights are stored in few bits: tables of embeddings too."""
    tables = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Embedding)]
    return [*tables, *weighted_layers(encoder)]


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
def _largest_values(encoder: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Return the largest absolute value that goes into each layer or comes out of it, by the layer's name."""
    largest: dict[str, float] = {}

    def look(name: str, taken: tuple[Tensor, ...], output: Tensor) -> None:
        largest[name] = max(largest.get(name, 0), *(float(tensor.abs().max()) for tensor in (*taken, output)))

    kinds = (nn.Conv2d, nn.Linear, nn.LayerNorm)
    with watched([(name, module) for name, module in encoder.named_modules() if isinstance(module, kinds)], look):
        encoder(inputs)
    return largest


@torch.no_grad()
def most_affected(
    encoder: nn.Module,
    inputs: Tensor,
    precision: Precision,
    *,
    excluded: Collection[str] = (),
    show_progress: bool = False,
) -> list[str]:
    """Return the names of layers by how far the embeddings turn when that layer alone is rounded.

    Args:
        encoder: folded, in float32; it is as it was when this returns.
        inputs: what the encoder takes, a small batch.
        precision: what weights, and what goes into a layer, are rounded to; in bfloat16 weights alone.
        excluded: layers that are not looked at.
        show_progress: whether to show how far it is.
    """
    rounded_weight, rounded_input = ROUNDING[precision]
    layers = stored_layers(encoder) if precision == "int8-weights" else weighted_layers(encoder)
    names = [name for name, _ in layers if name not in excluded]

    def rounding(_: str, layer: nn.Module) -> AbstractContextManager[None]:
        return rounded_in_place(layer, rounded_weight(cast("Tensor", layer.weight).detach()), rounded_input)

    expected, title = encoder(inputs), "rounding one layer at a time"
    each = each_alone(encoder, inputs, layers, names, rounding)
    turns = {
        name: float(nn.functional.cosine_similarity(found, expected).min())
        for name, found in track(each, total=len(names), title=title, unit="layers", shown=show_progress)
    }
    return sorted(turns, key=turns.__getitem__)


def _in_eight_bits(weight: Tensor) -> Tensor:
    """Return a weight as int8 holds it, with a scale for each output channel."""
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True).clamp_min(1e-12) / _LARGEST_INT8
    return (weight / scale).round() * scale


def _in_steps(tensor: Tensor) -> Tensor:
    """Return what goes into a layer as it is in 256 steps from its least to its largest value."""
    least = tensor.min().clamp_max(0)
    scale = (tensor.max() - least).clamp_min(1e-12) / _STEPS
    return ((tensor - least) / scale).round() * scale + least


def _as_float16(tensor: Tensor) -> Tensor:
    return tensor.half().float()


def _as_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().float()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


# What rounds a weight, and what goes into its layer. What is computed in bfloat16 is rounded everywhere; a layer in
# float32 helps with its weight, which is also all that some files hold in it.
ROUNDING: dict[Precision, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "float16": (_as_float16, _as_float16),
    "bfloat16": (_as_bfloat16, _as_it_is),
    "int8": (_in_eight_bits, _in_steps),
    "int8-weights": (lambda weight: round_weight(weight.flatten(1)).restored().reshape(weight.shape), _as_it_is),
}

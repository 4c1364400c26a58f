"""Ranges of a tower in int8, in a file beside its weights: of layers by name, a step and a zero point.

A module carries them as `ranges`: `LAYER.weight`, the steps of the output channels of a layer, `LAYER.input` and, where
the output is rounded too, `LAYER.output`, a step and a zero point of uint8 each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from mobileclip.encoders.checkpoints.layouts import ModelSpec, prefix_of
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.errors import shown

_PREFIX = "mobileclip.ranges."
_TOWERS = ("image_encoder.", "text_encoder.")
_KINDS = ("weight", "input", "output")
_LARGEST_ZERO = 255


def carried_ranges(model: nn.Module) -> dict[str, Tensor]:
    """Return the ranges of a model, or of a tower alone, as a file calls them; nothing where it has none."""
    return {
        f"{_PREFIX}{prefix}{name}": tensor.cpu().contiguous()
        for prefix, part in _parts(model)
        for name, tensor in cast("Mapping[str, Tensor]", getattr(part, "ranges", {})).items()
    }


def attach_ranges(model: nn.Module, ranges: Mapping[str, Tensor]) -> None:
    """Let a model's towers, or a tower alone, carry their ranges."""
    for prefix, part in _parts(model):
        own = {name.removeprefix(prefix): tensor for name, tensor in ranges.items() if name.startswith(prefix)}
        if own:
            part.ranges = own  # type: ignore[assignment]


def taken_ranges(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the ranges out of the tensors of a file, and return them."""
    names = [name for name in tensors if name.startswith(_PREFIX)]
    return {name.removeprefix(_PREFIX): tensors.pop(name) for name in names}


def of_tower(ranges: dict[str, Tensor], spec: ModelSpec, tower: str | None) -> dict[str, Tensor]:
    """Return the ranges of one tower of a model, all of them where none is asked for or there is no other.

    Args:
        ranges: as a file has them.
        spec: of what the file holds.
        tower: `image` or `text`.
    """
    if tower is None or prefix_of(spec):
        return ranges
    prefix = f"{tower}_encoder."
    return {name.removeprefix(prefix): tensor for name, tensor in ranges.items() if name.startswith(prefix)}


def check_ranges(path: Path, ranges: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse ranges that no runtime can compute with.

    Args:
        path: of the file.
        ranges: by name.
        shapes: of the tensors of the model.

    Raises:
        CheckpointError: if one is not of a layer of the model, not whole, or not on a grid of 8 bits.
    """
    layers = {name.rpartition(".")[0] for name in ranges}
    needed = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "input")}
    wrong = sorted({*(needed - ranges.keys()), *(name for name, one in ranges.items() if not _fits(name, one, shapes))})
    if wrong:
        raise CheckpointError(
            f"{path} has ranges of int8 that do not fit its model: {shown(wrong[0])} is the first of {len(wrong)}; "
            "it is damaged, fetch it again or quantise the model anew"
        )


def _fits(name: str, values: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    layer, _, kind = name.rpartition(".")
    weight = shapes.get(f"{layer}.weight", ())
    expected = weight[:1] if kind == "weight" else (2,)
    if kind not in _KINDS or len(weight) < 2 or tuple(values.shape) != expected or values.dtype != torch.float32:
        return False
    steps = values if kind == "weight" else values[:1]
    zero = torch.zeros(()) if kind == "weight" else values[1]
    on_grid = bool(zero == zero.round()) and 0 <= float(zero) <= _LARGEST_ZERO
    return on_grid and bool(steps.isfinite().all()) and bool((steps > 0).all())


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the towers of a model with what their names begin with, or a tower alone."""
    towers = [(prefix, getattr(model, prefix.removesuffix("."), None)) for prefix in _TOWERS]
    return [(prefix, tower) for prefix, tower in towers if isinstance(tower, nn.Module)] or [("", model)]

"""Checks and changes of the tensors of a file: numbers, int8 ranges, other image sizes and context lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.encoders.checkpoints.layouts import Form, ModelSpec, TowerSpec, prefix_of, tensor_shapes, towers
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.tensor_files.errors import CheckpointError, shown

_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_numbers(source: str | Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise unless every tensor holds what the model has in its place.

    Args:
        source: where they are from, for the message.
        tensors: by name.
        dtypes: the model's, by name.

    Raises:
        CheckpointError: naming the first tensor that holds whole numbers in place of weights, or the other way round;
            that is complex; or with numbers that are not finite in float32.
    """
    for name, tensor in tensors.items():
        if dtypes[name].is_floating_point != tensor.dtype.is_floating_point or not (
            tensor.dtype.is_floating_point or tensor.dtype in _COUNTS
        ):
            raise CheckpointError(
                f"{source}: the tensor {shown(name)} holds {_spoken(tensor.dtype)}, and the model has "
                f"{_spoken(dtypes[name])} there; the checkpoint is of another model, or broken"
            )
        if tensor.dtype.is_floating_point and not _is_finite(tensor):
            raise CheckpointError(
                f"{source}: the tensor {shown(name)} holds NaN or infinite values; the checkpoint is broken"
            )


def check_cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Raise unless all weights of a model stay finite in another precision.

    Raises:
        ValueError: naming the first that does not.
    """
    largest = torch.finfo(dtype).max
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = tensor.aminmax()
        if max(-float(low), float(high)) > largest:
            raise ValueError(
                f"the weight {shown(name)} is beyond what {_spoken(dtype)} holds; choose bfloat16 or float32"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(low.float().isfinite()) and bool(high.float().isfinite())


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


Spec = TypeVar("Spec", bound=ModelSpec)


def resized(
    spec: ModelSpec,
    form: Form,
    weights: dict[str, Tensor],
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    in_channels: int | None = None,
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the spec and the weights of a model whose input is of another size, or has other channels.

    Args:
        spec: the model.
        form: of the weights.
        weights: in our names.
        image_size: side of the images, in pixels; None for the spec's own.
        context_length: ids per text; None for the spec's own.
        in_channels: of the images; None for the spec's own.

    Raises:
        ValueError: if the model has no such tower, or its weights cannot be had for that size.
    """
    if isinstance(spec, CoCaSpec):
        if context_length is None or (image_size, in_channels) != (None, None):
            raise ValueError("a captioner takes another context_length, and images of its own size and channels")
        return spec.with_context(context_length), spec.weights_for_context(weights, context_length)
    of_images = image_size if in_channels is None else in_channels
    for value, asked, kind in ((of_images, "image", ImageEncoderSpec), (context_length, "text", TextEncoderSpec)):
        if value is not None and not any(isinstance(tower, kind) for _, tower in towers(spec)):
            raise ValueError(f"the size of its {asked}s is given for a model that has no {asked} tower")
    changed = spec_of_size(spec, image_size=image_size, context_length=context_length, in_channels=in_channels)
    for (prefix, tower), (_, other) in zip(towers(spec), towers(changed), strict=True):
        own: Mapping[str, Tensor]
        own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
        if isinstance(tower, ImageEncoderSpec):
            own = own if image_size is None else tower.weights_for_size(own, image_size)
            own = own if in_channels is None else _of_channels(own, tensor_shapes(other, form), in_channels)
        else:
            own = own if context_length is None else tower.weights_for_context(own, context_length)
        _check_shapes(other, form, own)
        weights = weights | {prefix + name: weight for name, weight in own.items()}
    return changed, weights


def _of_channels(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], channels: int
) -> dict[str, Tensor]:
    """Return weights whose first convolutions see other channels: as timm's `adapt_input_conv`, summed or repeated."""
    return {
        name: weight
        if weight.shape == shapes[name] or weight.ndim != 4
        else weight.sum(1, keepdim=True)
        if channels == 1
        else weight[:, torch.arange(channels) % weight.shape[1]] * (weight.shape[1] / channels)
        for name, weight in weights.items()
    }


def spec_of_size(
    spec: Spec, *, image_size: int | None = None, context_length: int | None = None, in_channels: int | None = None
) -> Spec:
    """Return the spec that `resized` gives, where no weights are at hand to say whether they can be had for that size.

    Args:
        spec: the model.
        image_size: side of the images, in pixels; None for the spec's own.
        context_length: ids per text; None for the spec's own.
        in_channels: of the images; None for the spec's own.
    """
    sizes = {"image_size": image_size, "context_length": context_length, "in_channels": in_channels}
    if isinstance(spec, DualEncoderSpec):
        changed: ModelSpec = attrs.evolve(
            spec, image=spec_of_size(spec.image, **sizes), text=spec_of_size(spec.text, **sizes)
        )
    elif isinstance(spec, ClassifierSpec):
        changed = attrs.evolve(spec, image=spec_of_size(spec.image, **sizes))
    elif isinstance(spec, ImageEncoderSpec):
        changed = spec if in_channels is None else spec.with_channels(in_channels)
        if image_size is not None:
            changed = attrs.evolve(changed, input=attrs.evolve(changed.input, size=image_size))
    else:
        assert isinstance(spec, TextEncoderSpec), "there is no other kind"
        length = spec.input.context_length if context_length is None else context_length
        changed = attrs.evolve(spec, input=attrs.evolve(spec.input, context_length=length))
    return cast("Spec", changed)


def _check_shapes(tower: TowerSpec, form: Form, weights: Mapping[str, Tensor]) -> None:
    for name, shape in tensor_shapes(tower, form).items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{name} has the shape {tuple(weights[name].shape)}, and {shape} at the size asked for; "
                f"{type(tower).__name__} does not say how one becomes the other"
            )

"""Checks the tensors of a file, and adapts tensors to other image sizes and context lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import attrs
import torch
from torch import Tensor

from mobileclip.encoders.checkpoints.layouts import Form, ModelSpec, TowerSpec, tensor_shapes, towers
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec
from mobileclip.tensor_files.errors import CheckpointError, shown

_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_numbers(source: str | Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise unless every tensor has a compatible dtype and finite values.

    Args:
        source: path or name of the checkpoint, for error messages.
        tensors: tensors of the checkpoint, by name.
        dtypes: dtypes of the model's tensors, by name.

    Raises:
        CheckpointError: if a tensor has integers instead of floats or vice versa, is complex, or is not finite in
            float32; the message names the first such tensor.
    """
    for name, tensor in tensors.items():
        if dtypes[name].is_floating_point != tensor.dtype.is_floating_point or not (
            tensor.dtype.is_floating_point or tensor.dtype in _COUNTS
        ):
            raise CheckpointError(
                f"{source}: the tensor {shown(name)} holds {_spoken(tensor.dtype)}, but the model expects "
                f"{_spoken(dtypes[name])}; the checkpoint belongs to a different model, or is damaged",
                code="another_dtype",
            )
        if tensor.dtype.is_floating_point and not _is_finite(tensor):
            raise CheckpointError(
                f"{source}: the tensor {shown(name)} holds NaN or infinite values; the checkpoint is damaged",
                code="not_finite",
            )


def check_cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Raise unless all weights of a model stay finite in `dtype`.

    Raises:
        CheckpointError: if a weight is NaN; the message names the weight. Reparameterizing a norm with a negative
            variance gives NaN.
        ValueError: if a weight overflows; the message names the weight.
    """
    largest = torch.finfo(dtype).max
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = tensor.aminmax()
        if bool(high.isnan()):
            raise CheckpointError(
                f"the weight {shown(name)} of the model is NaN; the checkpoint is broken", code="not_finite"
            )
        if max(-float(low), float(high)) > largest:
            raise ValueError(
                f"the weight {shown(name)} exceeds the range of {_spoken(dtype)}; choose bfloat16 or float32"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(low.float().isfinite()) and bool(high.float().isfinite())


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    """Return the spec and the weights of a model for a different input size or number of channels.

    Args:
        spec: spec of the model.
        form: form of the weights: `training`, `branches_folded` or `folded`.
        weights: weights under this library's names.
        image_size: side of the images, in pixels; None for no change.
        context_length: number of ids per text; None for no change.
        in_channels: number of image channels; None for no change.

    Raises:
        ValueError: if the model has no tower for a changed input, or the tower supports only its current input.
    """
    if isinstance(spec, CoCaSpec):
        if context_length is None or (image_size, in_channels) != (None, None):
            raise ValueError(
                "only the context_length of a captioner can change, not the size or channels of its images"
            )
        return spec.with_context(context_length), spec.weights_for_context(weights, context_length)
    of_images = image_size if in_channels is None else in_channels
    for value, asked, kind in ((of_images, "image", ImageEncoderSpec), (context_length, "text", TextEncoderSpec)):
        if value is not None and not any(isinstance(tower, kind) for _, tower in towers(spec)):
            raise ValueError(f"the model has no {asked} tower, so its {asked} input cannot change")
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
    """Return weights for a different number of input channels, summed or repeated like timm's `adapt_input_conv`."""
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
    """Return the spec for a different input size or number of channels; `resized` also adapts the weights.

    Args:
        spec: spec of the model.
        image_size: side of the images, in pixels; None for no change.
        context_length: number of ids per text; None for no change.
        in_channels: number of image channels; None for no change.
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
                f"{name} has the shape {tuple(weights[name].shape)}, but needs {shape} at the new size; "
                f"{type(tower).__name__} does not implement the conversion"
            )

"""The weights of a model for images of another size and texts of another length."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor

from mobileclip.encoders.checkpoints.forms import Form, tensor_shapes
from mobileclip.encoders.checkpoints.layouts import ModelSpec, TowerSpec, towers
from mobileclip.encoders.classifier import ClassifierSpec
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec


def resized(
    spec: ModelSpec, form: Form, weights: dict[str, Tensor], *, image_size: int | None, context_length: int | None
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the spec and the weights of a model whose input is of another size.

    Args:
        spec: the model.
        form: of the weights.
        weights: in our names.
        image_size: side of the images, in pixels; None for the spec's own.
        context_length: ids per text; None for the spec's own.

    Raises:
        ValueError: if the model has no such tower, or its weights cannot be had for that size.
    """
    changed: list[TowerSpec] = []
    for prefix, tower in towers(spec):
        own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
        other, its = _tower_resized(tower, own, image_size=image_size, context_length=context_length)
        _check_shapes(other, form, its)
        weights = weights | {prefix + name: weight for name, weight in its.items()}
        changed.append(other)
    kinds = {isinstance(tower, ImageEncoderSpec) for tower in changed}
    for value, asked, is_image in ((image_size, "image", True), (context_length, "text", False)):
        if value is not None and is_image not in kinds:
            raise ValueError(f"the size of its {asked}s is given for a model that has no {asked} tower")
    if isinstance(spec, DualEncoderSpec):
        image, text = changed
        assert isinstance(image, ImageEncoderSpec), "a tower keeps its kind"
        assert isinstance(text, TextEncoderSpec), "a tower keeps its kind"
        return attrs.evolve(spec, image=image, text=text), weights
    (only,) = changed
    if isinstance(spec, ClassifierSpec):
        assert isinstance(only, ImageEncoderSpec), "a tower keeps its kind"
        return attrs.evolve(spec, image=only), weights
    return only, weights


def spec_of_size(
    spec: DualEncoderSpec, *, image_size: int | None = None, context_length: int | None = None
) -> DualEncoderSpec:
    """Return the spec that `resized` gives, where no weights are at hand to say whether they can be had for that size.

    Args:
        spec: the model.
        image_size: side of the images, in pixels; None for the spec's own.
        context_length: ids per text; None for the spec's own.
    """
    return attrs.evolve(
        spec, image=_image_of_size(spec.image, image_size), text=_text_of_length(spec.text, context_length)
    )


def _image_of_size(tower: ImageEncoderSpec, size: int | None) -> ImageEncoderSpec:
    return tower if size is None else attrs.evolve(tower, input=attrs.evolve(tower.input, size=size))


def _text_of_length(tower: TextEncoderSpec, length: int | None) -> TextEncoderSpec:
    return tower if length is None else attrs.evolve(tower, input=attrs.evolve(tower.input, context_length=length))


def _tower_resized(
    tower: TowerSpec, weights: dict[str, Tensor], *, image_size: int | None, context_length: int | None
) -> tuple[TowerSpec, Mapping[str, Tensor]]:
    if isinstance(tower, ImageEncoderSpec):
        if image_size is None:
            return tower, weights
        return _image_of_size(tower, image_size), tower.weights_for_size(weights, image_size)
    if context_length is None:
        return tower, weights
    return _text_of_length(tower, context_length), tower.weights_for_context(weights, context_length)


def _check_shapes(tower: TowerSpec, form: Form, weights: Mapping[str, Tensor]) -> None:
    for name, shape in tensor_shapes(tower, form).items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"{name} has the shape {tuple(weights[name].shape)}, and {shape} at the size asked for; "
                f"{type(tower).__name__} does not say how one becomes the other"
            )

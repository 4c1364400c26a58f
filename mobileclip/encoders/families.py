"""Base classes and registries of the specs of image encoders, text encoders and token mixers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import attrs
from torch import Tensor, nn

from mobileclip.encoders.towers import WIDTH
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.registry import Registry
from mobileclip.serialization import register_spec_base
from mobileclip.strict import strict

Spec = TypeVar("Spec", bound=attrs.AttrsInstance)

TRAINING_ONLY = {"mobileclip.used": "in training alone"}
"""Metadata of a field that affects an encoder's initialisation or training, but not the function of its trained
weights."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageEncoderSpec(ABC):
    """Base class of image encoder specs, with the fields that all image encoders share.

    Args:
        embedding_dim: width of the embedding.
        input: contract of the input images: size, channels and normalisation.
        projection_bias: whether the last projection has a bias. The papers' models have no bias; open_clip's
            checkpoints may have one.

    Examples:
        >>> class MeanColourSpec(ImageEncoderSpec):
        ...     def build(self) -> nn.Module:
        ...         return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, self.embedding_dim))
        >>> MeanColourSpec(embedding_dim=16).build()(torch.rand(2, 3, 256, 256)).shape
        torch.Size([2, 16])
    """

    embedding_dim: int = attrs.field(default=512, validator=WIDTH)
    input: ImageInput = ImageInput(size=256)
    projection_bias: bool = False

    @property
    def num_blocks(self) -> int:
        """Number of blocks. Each has at least one tensor, so loading refuses a checkpoint with fewer tensors."""
        return 0

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new encoder from images `(batch, channels, size, size)` to embeddings `(batch, embedding_dim)`."""

    def without_projection(self) -> ImageEncoderSpec:
        """Return the spec without the last projection, so that embeddings are the pooled features.

        Tensor names stay the same, except that the projection's tensors are missing.

        Raises:
            ValueError: if the encoder has no form without the projection.
        """
        raise ValueError(f"{type(self).__name__} has no form without its last projection; use its embeddings")

    def with_channels(self, channels: int) -> ImageEncoderSpec:
        """Return the spec for a different number of channels, with mean and std from `ImageInput.of_channels`.

        Raises:
            ValueError: if the encoder supports only its current number of channels.
        """
        raise ValueError(f"{type(self).__name__} supports images with {self.input.channels} channels, not {channels}")

    def weights_for_size(self, weights: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
        """Return the weights for a different image size; weights that do not depend on the size stay unchanged.

        Args:
            weights: weights of an encoder of this spec, in training form or folded.
            size: side of the images, in pixels; the spec must support this size.

        Raises:
            ValueError: if the spec does not support resizing, or the weights cannot be resized.
        """
        del weights
        raise ValueError(
            f"{type(self).__name__} supports only images of {self.input.size} pixels, not {size}; omit the size"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextEncoderSpec(ABC):
    """Base class of text encoder specs, with the fields that all text encoders share.

    Args:
        embedding_dim: width of the embedding.
        input: contract of the input texts: context length, padding and tokenizer.

    Examples:
        >>> class BagOfWordsSpec(TextEncoderSpec):
        ...     def build(self) -> nn.Module:
        ...         return nn.EmbeddingBag(self.input.vocab_size, self.embedding_dim)
        >>> BagOfWordsSpec(embedding_dim=16).build()(torch.zeros(2, 77, dtype=torch.int64)).shape
        torch.Size([2, 16])
    """

    embedding_dim: int = attrs.field(default=512, validator=WIDTH)
    input: TextInput = TextInput()

    @property
    def num_blocks(self) -> int:
        """Number of blocks. Each has at least one tensor, so loading refuses a checkpoint with fewer tensors."""
        return 0

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new encoder from ids `(batch, context_length)` to embeddings `(batch, embedding_dim)`."""

    def weights_for_context(self, weights: Mapping[str, Tensor], context_length: int) -> Mapping[str, Tensor]:
        """Return the weights for a different context length; weights that do not depend on the length stay unchanged.

        Args:
            weights: weights of an encoder of this spec, in training form or folded.
            context_length: number of ids per text.

        Raises:
            ValueError: if the spec does not support resizing, or the weights cannot be resized.
        """
        del weights
        raise ValueError(
            f"{type(self).__name__} supports only texts of {self.input.context_length} ids, not {context_length}; "
            "omit the length"
        )


@attrs.frozen(kw_only=True)
class TokenMixerSpec(ABC):
    """Base class of token mixer specs: how the blocks of one stage mix spatial positions.

    Examples:
        >>> class PoolingSpec(TokenMixerSpec):
        ...     def build_block(self, dim, *, hidden_dim, layer_scale, drop_path):
        ...         return mobileclip.blocks.RepMixerBlock(dim, mixer=nn.AvgPool2d(3, stride=1, padding=1))
        >>> MCiSpec(stages=(StageSpec(dim=8, depth=1, mixer=PoolingSpec()),)).build()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 512])
    """

    @abstractmethod
    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float, drop_path: float) -> nn.Module:
        """Return one block of a stage, which maps a feature map to one of the same shape.

        Args:
            dim: channels of the stage.
            hidden_dim: width of the feed-forward network.
            layer_scale: initial value of the layer scales.
            drop_path: probability of dropping a branch for a sample in training.
        """

    @property
    def has_position(self) -> bool:
        """Whether the stage begins with a positional encoding."""
        return False

    def build_position(self, dim: int) -> nn.Module | None:
        """Return the positional encoding in front of the stage's blocks, if it has one."""
        del dim
        return None


image_encoder_families: Registry[type[ImageEncoderSpec]] = Registry("image_encoder_family")
"""Spec classes of image encoders, by their names in JSON.

Add your own here, or by an entry point in the group `mobileclip.image_encoder_family`.
"""
text_encoder_families: Registry[type[TextEncoderSpec]] = Registry("text_encoder_family")
"""Spec classes of text encoders, by their names in JSON.

Add your own here, or by an entry point in the group `mobileclip.text_encoder_family`.
"""
token_mixers: Registry[type[TokenMixerSpec]] = Registry("token_mixer")
"""Spec classes of token mixers, by name; add your own here, or by an entry point in `mobileclip.token_mixer`."""

register_spec_base(ImageEncoderSpec, image_encoder_families)
register_spec_base(TextEncoderSpec, text_encoder_families)
register_spec_base(TokenMixerSpec, token_mixers)


def as_trained(spec: Spec) -> Spec:
    """Return a spec with default training-only fields; models with equal results compute the same function.

    Args:
        spec: spec of a tower, or of a model with an image tower.
    """
    changes: dict[str, Any] = {}
    for field in attrs.fields(type(spec)):
        value = getattr(spec, field.name)
        if TRAINING_ONLY.items() <= field.metadata.items():
            changes[field.name] = field.default
        elif isinstance(value, ImageEncoderSpec):
            changes[field.name] = as_trained(value)
    evolved: Spec = attrs.evolve(cast("Any", spec), **changes)
    return evolved


def check_unprojected(spec: ImageEncoderSpec, pooled_dim: int) -> None:
    """Check that the `embedding_dim` of an encoder without projection is the width of the pooled features.

    Raises:
        ValueError: if `embedding_dim` differs from that width, or `projection_bias` is set.
    """
    if spec.embedding_dim != pooled_dim:
        raise ValueError(
            f"without a projection, embeddings are the pooled features of width {pooled_dim}, not "
            f"embedding_dim={spec.embedding_dim}; use spec.without_projection()"
        )
    if spec.projection_bias:
        raise ValueError("projection_bias needs a projection, but projection=False")


def image_spec(encoder: nn.Module) -> ImageEncoderSpec:
    """Return the spec of an image encoder.

    Raises:
        ValueError: if the encoder has no `spec` of type `ImageEncoderSpec`.
    """
    spec = getattr(encoder, "spec", None)
    if not isinstance(spec, ImageEncoderSpec):
        raise ValueError(_without_spec(encoder, ImageEncoderSpec, "image size, mean and standard deviation"))
    return spec


def text_spec(encoder: nn.Module) -> TextEncoderSpec:
    """Return the spec of a text encoder.

    Raises:
        ValueError: if the encoder has no `spec` of type `TextEncoderSpec`.
    """
    spec = getattr(encoder, "spec", None)
    if not isinstance(spec, TextEncoderSpec):
        raise ValueError(_without_spec(encoder, TextEncoderSpec, "context length and tokenizer"))
    return spec


def _without_spec(encoder: nn.Module, kind: type, says: str) -> str:
    return (
        f"{type(encoder).__name__} has no `.spec` of type {kind.__name__}, which defines {says}; "
        "set one, so that inputs can be checked and checkpoints can be loaded again"
    )

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
"""Metadata of a spec field that affects initialisation or training, but not the outputs of trained weights."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageEncoderSpec(ABC):
    """Base class of image encoder specs, with the fields that all image encoders share.

    Args:
        embedding_dim: size of each embedding vector.
        input: preprocessing of the images: size, channels and normalisation.
        projection_bias: whether the last projection has a bias, as in some open_clip checkpoints; MobileCLIP's
            projections have no bias.

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
        """Number of blocks; loading refuses a checkpoint with fewer tensors than blocks."""
        return 0

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new encoder from images `(batch, channels, size, size)` to embeddings `(batch, embedding_dim)`."""

    def without_projection(self) -> ImageEncoderSpec:
        """Return the spec without the last projection, so that embeddings are the pooled features.

        All other tensors keep their names.

        Raises:
            ValueError: if the spec does not support removing the projection.
        """
        raise ValueError(
            f"{type(self).__name__} does not support removing its last projection; use the encoder with the projection"
        )

    def with_channels(self, channels: int) -> ImageEncoderSpec:
        """Return the spec for a different number of channels, with mean and std from `ImageInput.of_channels`.

        Raises:
            ValueError: if the encoder supports only its current number of channels.
        """
        raise ValueError(f"{type(self).__name__} supports images with {self.input.channels} channels, not {channels}")

    def weights_for_size(self, weights: Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
        """Return the weights for a different image size; weights that do not depend on the size stay unchanged.

        Args:
            weights: weights of an encoder of this spec, in training form or reparameterized.
            size: height and width of the images, in pixels; the spec must support this size.

        Raises:
            ValueError: if the spec supports only its own image size, or the position embeddings are not a square grid.
        """
        del weights
        raise ValueError(
            f"{type(self).__name__} supports only images of {self.input.size} pixels, not {size}; omit the size"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextEncoderSpec(ABC):
    """Base class of text encoder specs, with the fields that all text encoders share.

    Args:
        embedding_dim: size of each embedding vector.
        input: preprocessing of the texts: context length, padding and tokenizer.

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
        """Number of blocks; loading refuses a checkpoint with fewer tensors than blocks."""
        return 0

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new encoder from ids `(batch, context_length)` to embeddings `(batch, embedding_dim)`."""

    def weights_for_context(self, weights: Mapping[str, Tensor], context_length: int) -> Mapping[str, Tensor]:
        """Return the weights for a different context length; weights that do not depend on the length stay unchanged.

        Args:
            weights: weights of an encoder of this spec, in training form or reparameterized.
            context_length: number of ids per text.

        Raises:
            ValueError: if the spec supports only its own context length, or has too few position embeddings.
        """
        del weights
        raise ValueError(
            f"{type(self).__name__} supports only texts of {self.input.context_length} ids, not {context_length}; "
            "omit the length"
        )


@attrs.frozen(kw_only=True)
class TokenMixerSpec(ABC):
    """Base class of token mixer specs, which build the blocks of one stage.

    Examples:
        >>> class PoolingSpec(TokenMixerSpec):
        ...     def build_block(self, dim, *, hidden_dim, layer_scale, drop_path):
        ...         return mobileclip.blocks.RepMixerBlock(dim, mixer=nn.AvgPool2d(3, stride=1, padding=1))
        >>> MCiSpec(stages=(StageSpec(dim=8, depth=1, mixer=PoolingSpec()),)).build()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 512])
    """

    @abstractmethod
    def build_block(self, dim: int, *, hidden_dim: int, layer_scale: float, drop_path: float) -> nn.Module:
        """Return one block of a stage, a module that keeps the shape of the feature map.

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
        """Return the positional encoding before the stage's blocks; None for no positional encoding."""
        del dim
        return None


image_encoder_families: Registry[type[ImageEncoderSpec]] = Registry("image_encoder_family")
"""Spec classes of image encoders, by their names in JSON.

Register your own classes here, or through the entry point group `mobileclip.image_encoder_family`.
"""
text_encoder_families: Registry[type[TextEncoderSpec]] = Registry("text_encoder_family")
"""Spec classes of text encoders, by their names in JSON.

Register your own classes here, or through the entry point group `mobileclip.text_encoder_family`.
"""
token_mixers: Registry[type[TokenMixerSpec]] = Registry("token_mixer")
"""Spec classes of token mixers, by their names in JSON.

Register your own classes here, or through the entry point group `mobileclip.token_mixer`.
"""

register_spec_base(ImageEncoderSpec, image_encoder_families)
register_spec_base(TextEncoderSpec, text_encoder_families)
register_spec_base(TokenMixerSpec, token_mixers)


def as_trained(spec: Spec) -> Spec:
    """Reset a spec's training-only fields to their defaults, so that equal results mean equal architectures.

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
        ValueError: if `embedding_dim` differs from `pooled_dim`, or `projection_bias` is set.
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
        "set `.spec`, which input checks and checkpoints need"
    )

"""Shared code of towers: checks of widths and images, initial weights, position embeddings, and feature maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
import torch.fx
from attrs import validators
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention
from mobileclip.inputs import ImageInput, TextInput

WIDTH = [validators.gt(0), validators.le(1 << 16)]
"""Validators of widths, and of numbers of channels or heads: from 1 to 65,536."""

DEPTH = [validators.gt(0), validators.le(1 << 12)]
"""Validators of numbers of blocks: from 1 to 4,096."""

_MAX_KERNEL_SIZE = 1023


def check_images(images: Tensor, contract: ImageInput) -> None:
    """Raise unless `images` is `(batch, channels, size, size)`.

    Raises:
        ValueError: if the shape differs; at other sizes, some encoders would silently return different embeddings.
    """
    expected = (contract.channels, contract.size, contract.size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"expected images of shape (batch, {', '.join(map(str, expected))}), got {tuple(images.shape)}; "
            "preprocess them with this model's own transform, or build the model from a spec with this input size"
        )


def check_tokens(tokens: Tensor, contract: TextInput) -> None:
    """Raise unless `tokens` is an integer tensor `(batch, context_length)`.

    Raises:
        ValueError: if the shape or dtype differs; a different amount of padding would change the embeddings.
    """
    if tokens.ndim != 2 or tokens.shape[1] != contract.context_length or tokens.is_floating_point():
        raise ValueError(
            f"expected token ids of shape (batch, {contract.context_length}), got {tuple(tokens.shape)} of "
            f"{tokens.dtype}; use this model's own tokenizer, which pads with {contract.pad_id} to that length"
        )


def odd(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    """Validate a spec's kernel size.

    Raises:
        ValueError: unless the size is odd, positive and at most 1023; an even kernel has no centre.
    """
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{attribute.name} of {type(instance).__name__} must be odd and positive, not {value}")
    if value > _MAX_KERNEL_SIZE:
        raise ValueError(
            f"{attribute.name} of {type(instance).__name__} must be at most {_MAX_KERNEL_SIZE}, not {value}"
        )


def check_heads(width: int, num_heads: int) -> None:
    """Raise unless `num_heads` divides `width`.

    Raises:
        ValueError: if `width` is not a multiple of `num_heads`.
    """
    if width % num_heads:
        raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}")


def initialize_linear(module: nn.Module) -> None:
    """Draw a linear layer's weight from a truncated normal (std 0.02) and zero its bias; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_as_open_clip(attentions: Iterable[Attention], parameters: Iterable[Tensor], *, width: int) -> None:
    """Initialise a vision transformer like open_clip.

    The weights of queries, keys and values are uniform with standard deviation `(2 / (width + 3 width)) ** 0.5`; the
    biases of all attention projections are zero. Class token, position embeddings and projection are normal with
    standard deviation `width ** -0.5`. Other layers keep PyTorch's initialisation: uniform with standard deviation
    `(3 fan_in) ** -0.5`, for example 0.0104 for the second linear layer of ViT-B/16's feed-forward networks.

    Args:
        attentions: attention modules of the layers.
        parameters: class token, position embeddings and projection weight.
        width: width of the tokens.

    Source: open_clip's `VisionTransformer`, with PyTorch's `MultiheadAttention`, `Linear` and `Conv2d`.
    """
    for attention in attentions:
        nn.init.xavier_uniform_(attention.qkv.weight)
        for bias in (attention.qkv.bias, attention.project.bias):
            nn.init.zeros_(bias)
    for tensor in parameters:
        nn.init.normal_(tensor, std=width**-0.5)


torch.fx.wrap("rearrange")  # torch.fx would trace into `rearrange` and fail


def resampled_positions(position: Tensor, grid: tuple[int, int], *, class_position: bool) -> Tensor:
    """Interpolate position embeddings to a new grid (bicubic, antialiased), except the class token's embedding.

    Shape:
        `(class_position + side * side, width)` to `(class_position + rows * columns, width)`.

    Args:
        position: embeddings of a square grid, row by row, after the class token's embedding, if any.
        grid: rows and columns of the new grid.
        class_position: whether the first position belongs to the class token.

    Raises:
        ValueError: if the new grid differs and the original grid is not square.

    Source: timm's `resample_abs_pos_embed`.
    """
    num_patches = len(position) - class_position
    side = math.isqrt(num_patches)
    if grid == (side, side):
        return position
    if side * side != num_patches:
        raise ValueError(f"{num_patches} positions are not a square grid, so they cannot be interpolated")
    patches = rearrange(position[class_position:].float(), "(h w) c -> 1 c h w", h=side)
    resampled = F.interpolate(patches, size=grid, mode="bicubic", antialias=True)
    flat = rearrange(resampled, "1 c h w -> (h w) c").to(position.dtype)
    return torch.cat([position[:class_position], flat])


@runtime_checkable
class SupportsFeatureMaps(Protocol):
    """Interface of an image encoder that also returns feature maps.

    Args:
        dims: number of channels of the feature map after each stage.
        strides: distance between neighbouring positions of each feature map, in pixels of the image.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    def embedding_and_features(
        self, images: Tensor, stages: Sequence[int] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the embeddings of images, and the feature maps after the requested stages, in one pass."""


def feature_encoder(encoder: nn.Module) -> SupportsFeatureMaps:
    """Return the encoder, typed as `SupportsFeatureMaps`.

    Raises:
        ValueError: if the encoder does not implement `SupportsFeatureMaps`.
    """
    if not isinstance(encoder, SupportsFeatureMaps):
        raise ValueError(
            f"{type(encoder).__name__} returns no feature maps; an image encoder with feature maps has `dims`, "
            "`strides` and `embedding_and_features(images, stages)`, see "
            "mobileclip.encoders.towers.SupportsFeatureMaps"
        )
    return encoder


@runtime_checkable
class SupportsLocalEmbeddings(Protocol):
    """Interface of an image encoder whose embedding is a mean over locations, such as MCi.

    Examples:
        >>> isinstance(mobileclip.build_model("mci0"), SupportsLocalEmbeddings)
        True
    """

    def local_embeddings(self, images: Tensor) -> Tensor:
        """Return `(batch, embedding_dim, rows, columns)`, whose mean over rows and columns is the embedding."""


def local_encoder(encoder: nn.Module) -> SupportsLocalEmbeddings:
    """Return the encoder, typed as `SupportsLocalEmbeddings`.

    Raises:
        ValueError: if the encoder does not implement `SupportsLocalEmbeddings`.
    """
    if not isinstance(encoder, SupportsLocalEmbeddings):
        raise ValueError(
            f"{type(encoder).__name__} cannot explain a score by location, because its embedding is not a mean "
            "over locations; use an MCi checkpoint such as mobileclip_s2 without optimize(), use an export with "
            "--features text-space, or compare crops of the image with encode_image"
        )
    return encoder


def chosen_stages(images: Tensor, stages: Sequence[int] | None, *, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of the requested stages.

    Args:
        images: preprocessed images, the encoder's input.
        stages: indices of stages; None for all.
        strides: strides of every stage, in pixels of the image.

    Raises:
        ValueError: if a stage does not exist, or the sides of the images are not multiples of the stages' strides.
    """
    depth_of(stages, len(strides))
    chosen = tuple(range(len(strides)) if stages is None else stages)
    stride = max(strides[stage] for stage in chosen)
    if images.ndim != 4 or images.shape[2] % stride or images.shape[3] % stride:
        raise ValueError(
            f"expected images of shape (batch, channels, height, width) whose sides are multiples of {stride}, got "
            f"{tuple(images.shape)}; resize or pad them, or request finer stages"
        )
    return chosen


def depth_of(stages: Sequence[int] | None, num_stages: int) -> int:
    """Return the number of stages to compute for the requested stages.

    Raises:
        ValueError: if a stage does not exist, or no stage is requested.
    """
    chosen = list(range(num_stages) if stages is None else stages)
    unknown = [stage for stage in chosen if stage not in range(num_stages)]
    if unknown or not chosen:
        raise ValueError(f"stages must be one or more indices from 0 to {num_stages - 1}, not {unknown}")
    return max(chosen) + 1


def outputs_of(stages: Iterable[Callable[[Tensor], Tensor]], x: Tensor, chosen: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the outputs of the requested stages, in the order of `chosen`, without computing later stages."""
    outputs = {}
    for number, stage in enumerate(itertools.islice(stages, max(chosen) + 1)):
        x = stage(x)
        if number in chosen:
            outputs[number] = x
    return tuple(outputs[number] for number in chosen)

"""Validates what an encoder is given: images, tokens, and the sizes in its spec."""

from __future__ import annotations

import attrs
from attrs import validators
from torch import Tensor

from mobileclip.inputs import ImageInput, TextInput

WIDTH = [validators.gt(0), validators.le(1 << 16)]
"""Validators of a number of channels, of heads, or of a layer's width."""

DEPTH = [validators.gt(0), validators.le(1 << 12)]
"""Validators of a number of blocks."""

_MAX_KERNEL_SIZE = 1023


def check_images(images: Tensor, contract: ImageInput) -> None:
    """Raise unless `images` is `(batch, channels, size, size)`.

    Raises:
        ValueError: another size would run in some encoders and mean something else.
    """
    expected = (contract.channels, contract.size, contract.size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"expected images of shape (batch, {', '.join(map(str, expected))}), got {tuple(images.shape)}; "
            "preprocess them with this model's own transform, or build the model from a spec of another input size"
        )


def check_tokens(tokens: Tensor, contract: TextInput) -> None:
    """Raise unless `tokens` is `(batch, context_length)` of integers.

    Raises:
        ValueError: another length would change the embedding, since padding is attended to.
    """
    if tokens.ndim != 2 or tokens.shape[1] != contract.context_length or tokens.is_floating_point():
        raise ValueError(
            f"expected token ids of shape (batch, {contract.context_length}), got {tuple(tokens.shape)} of "
            f"{tokens.dtype}; use this model's own tokenizer, which pads with {contract.pad_id} to that length"
        )


def odd(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    """Validate a spec's kernel size.

    Raises:
        ValueError: unless it is odd, positive and at most 1023: an even kernel has no centre.
    """
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{attribute.name} of {type(instance).__name__} is odd and positive, so not {value}")
    if value > _MAX_KERNEL_SIZE:
        raise ValueError(f"{attribute.name} of {type(instance).__name__} is at most {_MAX_KERNEL_SIZE}, not {value}")


def check_heads(width: int, num_heads: int) -> None:
    """Raise unless `num_heads` attention heads share `width`.

    Raises:
        ValueError: if the width is no multiple of the heads.
    """
    if width % num_heads:
        raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}")

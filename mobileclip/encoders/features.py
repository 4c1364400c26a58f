"""The interface of image encoders that give feature maps, and which stages are computed for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class GivesFeatures(Protocol):
    """An image encoder that gives feature maps too: the library's, and any other with these.

    Args:
        dims: channels of the map behind each stage.
        strides: pixels of the image from one position of that map to the next.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    def embedding_and_features(
        self, images: Tensor, stages: Sequence[int] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the embeddings of images, and the feature maps behind some stages, in one pass."""


def feature_encoder(encoder: nn.Module) -> GivesFeatures:
    """Return an encoder as one that gives feature maps.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(encoder, GivesFeatures):
        raise ValueError(
            f"{type(encoder).__name__} gives no feature maps; for these, an image encoder has `dims`, `strides` and "
            "`embedding_and_features(images, stages)`, see mobileclip.encoders.features.GivesFeatures"
        )
    return encoder


@runtime_checkable
class GivesLocalEmbeddings(Protocol):
    """An image encoder whose embedding is a mean over places: the library's MCi, and any other with this.

    Examples:
        >>> isinstance(mobileclip.build_model("mci0"), GivesLocalEmbeddings)
        True
    """

    def local_embeddings(self, images: Tensor) -> Tensor:
        """Return `(batch, embedding_dim, rows, columns)`, whose mean over rows and columns is the embedding."""


def local_encoder(encoder: nn.Module) -> GivesLocalEmbeddings:
    """Return an encoder as one that gives the embedding of each place.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(encoder, GivesLocalEmbeddings):
        raise ValueError(
            f"{type(encoder).__name__} cannot say where in a picture a score comes from: its embedding is no mean over "
            "places, as that of a class token is not; take a checkpoint with an MCi image tower, such as "
            "mobileclip_s2, not optimized, or an export of one with --features text-space; or compare crops of the "
            "picture with encode_image"
        )
    return encoder


def chosen_stages(images: Tensor, stages: Sequence[int] | None, *, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the stages whose features are asked for, all of them where none are named.

    Args:
        images: what goes into the encoder.
        stages: numbers of stages, from 0.
        strides: of every stage, in pixels of the image.

    Raises:
        ValueError: if there is no such stage, or the sides of the images are no multiples of the stages' strides.
    """
    depth_of(stages, len(strides))
    chosen = tuple(range(len(strides)) if stages is None else stages)
    stride = max(strides[stage] for stage in chosen)
    if images.ndim != 4 or images.shape[2] % stride or images.shape[3] % stride:
        raise ValueError(
            f"expected images of shape (batch, channels, height, width) whose sides are multiples of {stride}, got "
            f"{tuple(images.shape)}; resize or pad them, or ask for finer stages"
        )
    return chosen


def depth_of(stages: Sequence[int] | None, num_stages: int) -> int:
    """Return how many stages are computed for the features of some.

    Raises:
        ValueError: if there is no such stage.
    """
    chosen = list(range(num_stages) if stages is None else stages)
    unknown = [stage for stage in chosen if stage not in range(num_stages)]
    if unknown or not chosen:
        raise ValueError(f"stages are some of 0 to {num_stages - 1}, not {unknown}")
    return max(chosen) + 1


def outputs_of(stages: Iterable[Callable[[Tensor], Tensor]], x: Tensor, chosen: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the outputs of the chosen stages in the order named; later stages are not computed."""
    outputs = {}
    for number, stage in enumerate(itertools.islice(stages, max(chosen) + 1)):
        x = stage(x)
        if number in chosen:
            outputs[number] = x
    return tuple(outputs[number] for number in chosen)

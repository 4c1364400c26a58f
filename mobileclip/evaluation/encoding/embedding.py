"""Embeddings of whole data sets, gathered on the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn


class ImageTextModel(Protocol):
    """What an evaluation needs of a model: the two encoders, and what any module has."""

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - the field's signature
        """Return `(batch, dim)`."""

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - the field's signature
        """Return `(batch, dim)`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights; the first one's device is where inputs go."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the module and all below it."""

    def eval(self) -> object:
        """Switch to evaluation mode."""


class Tokenize(Protocol):
    """Texts to a model's ids, `(texts, context)`."""

    def __call__(self, texts: list[str], /) -> Tensor:
        """Return the ids."""


@contextmanager
def evaluating(model: ImageTextModel) -> Iterator[torch.device]:
    """Hold `model` in evaluation mode, without gradients, then give every module its mode back; yields its device."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module, training in modes:
            module.training = training


def embed_images(model: ImageTextModel, batches: Iterable[Tensor]) -> Tensor:
    """Return the embeddings of all images, as the model gives them (not normalised), in float32.

    Shape:
        batches: each `(batch, 3, size, size)`; result: `(images, dim)`.

    Raises:
        ValueError: if there is no image.
    """
    return embed_labelled_images(model, ((batch, torch.empty(len(batch), dtype=torch.long)) for batch in batches))[0]


def embed_labelled_images(model: ImageTextModel, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all images as `embed_images` does, and their labels.

    Shape:
        batches: each `(batch, 3, size, size)` and `(batch,)`; result: `(images, dim)` and `(images,)`.

    Raises:
        ValueError: if there is no image.
    """
    embeddings, labels = [], []
    with evaluating(model) as device:
        for image, label in batches:
            embeddings.append(model.encode_image(image.to(device)).float().cpu())
            labels.append(label.cpu())
    if not embeddings:
        raise ValueError("there are no images to evaluate on; check the path or the split")
    return torch.cat(embeddings), torch.cat(labels)


def embed_texts(model: ImageTextModel, tokenize: Tokenize, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Return the embeddings of all texts, as the model gives them (not normalised), in float32.

    Shape:
        result: `(texts, dim)`.

    Args:
        model: an image-text model.
        tokenize: turns texts into the model's ids.
        texts: at least one.
        batch_size: texts encoded at once.

    Raises:
        ValueError: if there is no text.
    """
    if not texts:
        raise ValueError("there are no texts to embed")
    embeddings = []
    with evaluating(model) as device:
        for start in range(0, len(texts), batch_size):
            tokens = tokenize(list(texts[start : start + batch_size]))
            embeddings.append(model.encode_text(tokens.to(device)).float().cpu())
    return torch.cat(embeddings)

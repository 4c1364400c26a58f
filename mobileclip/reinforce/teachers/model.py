"""A model of this library, or of open_clip, as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.data import normalize_pixels
from mobileclip.inputs import ImageInput
from mobileclip.tensor_files.weights import weights_sha256

MAX_BATCH = 128

_Items = TypeVar("_Items", Tensor, list[str])


class ImageTextTower(Protocol):
    """A model as this library and open_clip build it."""

    def encode_image(self, image: Tensor) -> Tensor:
        """Return (batch, dim)."""

    def encode_text(self, text: Tensor) -> Tensor:
        """Return (batch, dim)."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the weights; inputs go to the first one's device."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""

    def eval(self) -> object:
        """Switch to evaluation mode."""


@attrs.frozen(kw_only=True, eq=False)
class ModelTeacher:
    """A dual encoder of this library, or of open_clip, as a teacher.

    Args:
        name: what people call it.
        model: switched to evaluation mode; it computes on its own device and in the precision of its weights.
        tokenizer: texts to ids.
        image: the image contract of the model.
        dim: dim of its joint embedding.
        logit_scale: what it multiplies cosine similarities with, after exp.
        max_batch: images, or texts, that are encoded at once, so that memory does not grow with what is asked for.
        weights_sha256: hash of the weights as they were loaded; computed where it is left out.
    """

    name: str
    model: ImageTextTower
    tokenizer: Callable[[Sequence[str]], Tensor]
    image: ImageInput
    dim: int = attrs.field(validator=validators.gt(0))
    logit_scale: float = attrs.field(default=100.0, validator=validators.gt(0))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))
    weights_sha256: str = attrs.field()

    def __attrs_post_init__(self) -> None:
        self.model.eval()

    @weights_sha256.default
    def _weights_sha256(self) -> str:
        return weights_sha256(self.model.state_dict())

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim) float32, on the CPU.
        """
        first = next(iter(self.model.parameters()))

        def encode(chunk: Tensor) -> Tensor:
            images = normalize_pixels(chunk.to(first.device), self.image).to(first.dtype)
            return self.model.encode_image(images)

        return self._in_chunks(encode, pixels)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts.

        Shape:
            (number of texts, dim) float32, on the CPU.
        """
        device = next(iter(self.model.parameters())).device
        return self._in_chunks(lambda chunk: self.model.encode_text(self.tokenizer(chunk).to(device)), list(texts))

    def _in_chunks(self, encode: Callable[[_Items], Tensor], items: _Items) -> Tensor:
        starts = range(0, len(items), self.max_batch)
        chunks = [encode(items[start : start + self.max_batch]).float() for start in starts]
        return torch.cat(chunks).cpu() if chunks else torch.zeros(0, self.dim)

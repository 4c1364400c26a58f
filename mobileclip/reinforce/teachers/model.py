"""A model of this library, or of open_clip, as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.inputs import ImageInput
from mobileclip.reinforce.teachers.weights import weights_sha256


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
        model: switched to evaluation mode.
        tokenizer: texts to ids.
        image: the image contract of the model.
        dim: dim of its joint embedding.
        logit_scale: what it multiplies cosine similarities with, after exp.
    """

    name: str
    model: ImageTextTower
    tokenizer: Callable[[Sequence[str]], Tensor]
    image: ImageInput
    dim: int = attrs.field(validator=validators.gt(0))
    logit_scale: float = attrs.field(default=100.0, validator=validators.gt(0))
    weights_sha256: str = attrs.field(init=False)

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
        images = normalize_pixels(pixels.to(first.device), self.image).to(first.dtype)
        return self.model.encode_image(images).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts.

        Shape:
            (number of texts, dim) float32, on the CPU.
        """
        device = next(iter(self.model.parameters())).device
        return self.model.encode_text(self.tokenizer(list(texts)).to(device)).float().cpu()


def normalize_pixels(pixels: Tensor, image: ImageInput) -> Tensor:
    """Return `(pixel / 255 - mean) / std`.

    Shape:
        (batch, 3, height, width) uint8 -> the same, float32.

    Args:
        pixels: 0 to 255.
        image: the contract that mean and std are taken from.
    """
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (image.mean, image.std))
    return (pixels.float() / 255 - mean) / std

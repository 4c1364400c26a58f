"""A small real image-text model: colours and their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from mobileclip.encoders import DualEncoder, ImageEncoderSpec, TextEncoderSpec
from mobileclip.evaluation import Session
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import ImageInput, TextInput

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "yellow": (1.0, 1.0, 0.0)}


class _ImageSpec(ImageEncoderSpec):
    def build(self) -> nn.Module:
        return ColourTower()


class _TextSpec(TextEncoderSpec):
    def build(self) -> nn.Module:
        return NameTower()


def image_spec_of(dim: int) -> ImageEncoderSpec:
    """The contract of `to_tensor`: 4 by 4 pixels of the whole picture."""
    return _ImageSpec(embedding_dim=dim, input=ImageInput(size=4, interpolation="bicubic", fit="stretch"))


def text_spec_of(dim: int, num_ids: int) -> TextEncoderSpec:
    return _TextSpec(embedding_dim=dim, input=TextInput(context_length=num_ids))


def tokenize(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[int(name in text) for name in COLOURS] for text in texts])


class ColourTower(nn.Module):
    """Knows an image by its mean colour; has a BatchNorm to be kept quiet."""

    def __init__(self, weights: Sequence[float] = (3.0, 3.0, 3.0)) -> None:
        super().__init__()
        self.spec = image_spec_of(3)
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, images: Tensor) -> Tensor:
        return self.weights * self.norm(images).mean(dim=(2, 3))


class NameTower(nn.Module):
    """Knows a text by the colours it mentions."""

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor] = tokenize, num_ids: int = len(COLOURS)) -> None:
        super().__init__()
        self.spec = text_spec_of(3, num_ids)
        self.tokenizer = tokenizer
        self.table = nn.Parameter(torch.tensor(list(COLOURS.values())))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, : len(COLOURS)].float() @ self.table


class ColourModel(DualEncoder):
    """Knows images by their mean colour, and texts by the colours that they mention."""

    def __init__(self, image: nn.Module | None = None, text: nn.Module | None = None) -> None:
        super().__init__(image or ColourTower(), text or NameTower())


def session_of(model: DualEncoder | None = None, **options: object) -> Session:
    """A session of the model itself, not of a folded copy."""
    clip = ImageTextModel((model or ColourModel()).eval())
    return Session(clip, **{"show_progress": False, **options})


def image_of(name: str, size: int = 4) -> Image.Image:
    return Image.new("RGB", (size, size), tuple(round(255 * value) for value in COLOURS[name]))

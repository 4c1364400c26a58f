"""A small real image-text model: colours and their names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}


class ColourModel(nn.Module):
    """Knows an image by its mean colour, and a text by the colours it mentions; has a BatchNorm to be kept quiet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.table = nn.Parameter(torch.tensor(list(COLOURS.values())))

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        mean = self.norm(images).mean(dim=(2, 3))
        return F.normalize(mean, dim=-1) if normalize else 3 * mean

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        mixture = tokens.float() @ self.table
        return F.normalize(mixture, dim=-1) if normalize else mixture


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[int(name in text) for name in COLOURS] for text in texts])


def image_of(name: str, size: int = 4) -> Tensor:
    return torch.tensor(COLOURS[name])[:, None, None].expand(3, size, size)

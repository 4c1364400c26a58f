"""A small real image-text model: colours and their names."""

import torch
from PIL import Image
from torch import nn

from mobileclip.encoders import DualEncoder, ImageEncoderSpec, TextEncoderSpec
from mobileclip.evaluation import Session
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import ImageInput, TextInput

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "yellow": (1.0, 1.0, 0.0)}


class _ImageSpec(ImageEncoderSpec):
    def build(self):
        return ColourTower()


class _TextSpec(TextEncoderSpec):
    def build(self):
        return NameTower()


def image_spec_of(dim):
    """The contract of `to_tensor`: 4 by 4 pixels of the whole picture."""
    return _ImageSpec(embedding_dim=dim, input=ImageInput(size=4, interpolation="bicubic", fit="stretch"))


def text_spec_of(dim, num_ids):
    return _TextSpec(embedding_dim=dim, input=TextInput(context_length=num_ids))


def tokenize(texts):
    return torch.tensor([[int(name in text) for name in COLOURS] for text in texts])


class ColourTower(nn.Module):
    """Knows an image by its mean colour; has a BatchNorm to be kept quiet."""

    def __init__(self, weights=(3.0, 3.0, 3.0)):
        super().__init__()
        self.spec = image_spec_of(3)
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, images):
        return self.weights * self.norm(images).mean(dim=(2, 3))


class NameTower(nn.Module):
    """Knows a text by the colours it mentions."""

    def __init__(self, tokenizer=tokenize):
        super().__init__()
        self.spec = text_spec_of(3, len(COLOURS))
        self.tokenizer = tokenizer
        self.table = nn.Parameter(torch.tensor(list(COLOURS.values())))

    def forward(self, tokens):
        return tokens[:, : len(COLOURS)].float() @ self.table


class ColourModel(DualEncoder):
    """Knows images by their mean colour, and texts by the colours that they mention."""

    def __init__(self, image=None, text=None):
        super().__init__(image or ColourTower(), text or NameTower())


def session_of(model=None, **options):
    """A session of the model itself, not of a folded copy."""
    return Session(ImageTextModel((model or ColourModel()).eval()), **{"show_progress": False, **options})


def image_of(name, size=4):
    return Image.new("RGB", (size, size), tuple(round(255 * value) for value in COLOURS[name]))

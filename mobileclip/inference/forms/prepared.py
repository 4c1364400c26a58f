"""Towers made ready to encode: the same weights and embeddings, in less time."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mobileclip.encoders import DualEncoder, ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.families import image_spec, text_spec
from mobileclip.inference.forms.depthwise import with_depthwise_convs
from mobileclip.inference.forms.end_token import causal_pool, cut_behind_the_end, reads_text
from mobileclip.inference.forms.one_token import with_one_token

MOST_IMAGES_ON_CPU = 4
"""What few images need between two layers stays in a processor's cache: on two cores, four at a time of S0 take little
more than half the time of 64."""


def prepared(model: DualEncoder, *, images: bool = True, texts: bool = True) -> DualEncoder:
    """Return a dual encoder whose towers are ready to encode, as `prepared_tower` makes them.

    Args:
        model: in evaluation mode; the other one shares its weights. Making it takes about a millisecond, so that it can
            be made whenever it is needed, and always has the weights of the moment.
        images: whether its image tower is made ready, which takes the longer; texts are encoded without.
        texts: whether its text tower is made ready; images are encoded without.
    """
    image_encoder = prepared_tower(model.image_encoder) if images else model.image_encoder
    text_encoder = prepared_tower(model.text_encoder) if texts else model.text_encoder
    ready = DualEncoder(image_encoder, text_encoder, max_logit_scale=model.max_logit_scale)
    ready.logit_scale = model.logit_scale
    ready.training = False
    return ready


def prepared_tower(tower: nn.Module) -> nn.Module:
    """Return a tower that gives the same embeddings in less time.

    The last layer of a transformer computes the token that is read alone, and a causal text tower reads no further than
    its texts go; a text tower of another kind gets its tokens as they come. On a CPU, convolutions of several outputs
    for every channel become depthwise ones, and images have their channels innermost in memory, in any image tower.

    Args:
        tower: in evaluation mode; the other one shares its weights.
    """
    if isinstance(tower, PreparedTower):
        return tower
    if reads_text(tower):
        return ToTheEnd(tower)
    weight = next(tower.parameters(), None)
    if weight is None or weight.device.type != "cpu":
        return with_one_token(tower)
    return ChannelsInnermost(with_depthwise_convs(with_one_token(tower)))


def with_fast_layout(model: DualEncoder) -> DualEncoder:
    """Return the same model, whose image tower has its weights with channels innermost, as a CPU reads them fastest."""
    if model.logit_scale.device.type == "cpu":
        model.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class ReadyDualEncoder(DualEncoder):
    """A dual encoder whose towers choose by themselves how they compute, and how many inputs at once."""


class PreparedTower(nn.Module):
    """A tower that is ready to encode."""

    @property
    @abstractmethod
    def spec(self) -> ImageEncoderSpec | TextEncoderSpec:
        """The spec of the tower."""

    @property
    def takes_pixels(self) -> bool:
        """Whether uint8 pixels may come in place of images: it scales and normalises them itself."""
        return False


class ToTheEnd(PreparedTower):
    """A text tower that reads no further than its embeddings depend on, as far as that is known of its kind.

    Shape:
        ids `(batch, context_length)` to `(batch, embedding_dim)`.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = with_one_token(tower)
        self.pool = causal_pool(tower)
        self.training = False

    @property
    def spec(self) -> TextEncoderSpec:
        """The spec of the tower."""
        return text_spec(self.tower)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings, not normalised."""
        y: Tensor = self.tower(tokens if self.pool is None else cut_behind_the_end(tokens, self.pool))
        return y


class ChannelsInnermost(PreparedTower):
    """An image tower that lays its images out with channels innermost, which convolutions on a CPU pass on.

    Shape:
        `(batch, 3, height, width)` to `(batch, embedding_dim)`.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.training = False

    @property
    def spec(self) -> ImageEncoderSpec:
        """The spec of the tower."""
        return image_spec(self.tower)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, not normalised."""
        y: Tensor = self.tower(images.contiguous(memory_format=torch.channels_last))
        return y

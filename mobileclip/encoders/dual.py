"""The dual encoder: an image tower and a text tower that share one embedding space."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks.sequence import ActivationCheckpointing
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec, image_spec, text_spec
from mobileclip.encoders.towers import check_images, check_tokens
from mobileclip.strict import strict

INITIAL_LOGIT_SCALE = 1 / 0.07
MAX_LOGIT_SCALE = 100.0


@attrs.frozen(kw_only=True, field_transformer=strict)
class DualEncoderSpec:
    """The spec of an image-text model.

    Args:
        image: spec of the image tower.
        text: spec of the text tower, with the same `embedding_dim`.
        max_logit_scale: maximum logit scale. Training clamps the parameter after each step; inference and exports clamp
            `exp(logit_scale)`. A maximum that the checkpoint stores takes precedence.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> spec = DualEncoderSpec(image=ViTSpec(depth=6), text=MCtSpec())
        >>> from_json(to_json(spec), DualEncoderSpec) == spec
        True
    """

    image: ImageEncoderSpec
    text: TextEncoderSpec
    max_logit_scale: float = attrs.field(default=MAX_LOGIT_SCALE, validator=validators.gt(0), eq=False)

    def __attrs_post_init__(self) -> None:
        """Check that both towers have the same embedding width."""
        if self.image.embedding_dim != self.text.embedding_dim:
            raise ValueError(
                "both towers must have the same embedding_dim, but the image tower has "
                f"{self.image.embedding_dim} and the text tower {self.text.embedding_dim}"
            )

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the image tower and the text tower together."""
        return self.image.num_blocks + self.text.num_blocks

    def with_channels(self, channels: int) -> DualEncoderSpec:
        """Return the spec for a different number of image channels; see `ImageEncoderSpec.with_channels`."""
        return attrs.evolve(self, image=self.image.with_channels(channels))

    def build(self) -> DualEncoder:
        """Return a new model."""
        return DualEncoder(self.image.build(), self.text.build(), max_logit_scale=self.max_logit_scale)


class DualEncoder(ActivationCheckpointing, nn.Module):
    """An image tower, a text tower and the logit scale between them.

    Shape:
        images `(batch, channels, size, size)` and ids `(batch, context_length)` to embeddings `(batch, embedding_dim)`.

    Args:
        image_encoder: maps preprocessed images to embeddings, with an `ImageEncoderSpec` in the attribute `spec`.
        text_encoder: maps token ids to embeddings of the same width, with a `TextEncoderSpec` in the attribute `spec`.
        max_logit_scale: maximum logit scale; see `similarity_scale`.

    Source: MobileCLIP section 3.

    Examples:
        >>> image_spec, text_spec = ViTSpec(width=16, depth=1, num_heads=2), MCtSpec(width=16, depth=0, num_heads=2)
        >>> model = DualEncoder(image_spec.build(), text_spec.build())
        >>> image, text, scale = model(torch.rand(2, 3, 224, 224), torch.zeros(3, 77, dtype=torch.int64))
        >>> (scale * image @ text.T).shape
        torch.Size([2, 3])
    """

    max_logit_scale: float = MAX_LOGIT_SCALE  # for models that were pickled without this attribute

    def __init__(
        self, image_encoder: nn.Module, text_encoder: nn.Module, *, max_logit_scale: float = MAX_LOGIT_SCALE
    ) -> None:
        super().__init__()
        self.max_logit_scale = max_logit_scale
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        # One-dimensional, because `fully_shard` does not accept scalars.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(INITIAL_LOGIT_SCALE)]))

    @property
    def spec(self) -> DualEncoderSpec:
        """The specs of both towers, and the maximum logit scale.

        Raises:
            ValueError: if a tower has no spec, or the towers have different embedding dimensions.
        """
        image, text = image_spec(self.image_encoder), text_spec(self.text_encoder)
        return DualEncoderSpec(image=image, text=text, max_logit_scale=self.max_logit_scale)

    @property
    def similarity_scale(self) -> Tensor:
        """The clamped logit scale for classification and exports, `min(exp(logit_scale), max_logit_scale)`."""
        return self.logit_scale.reshape(()).exp().clamp(max=self.max_logit_scale)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - the release's
        """Return the embeddings of preprocessed images, optionally of unit length.

        Raises:
            ValueError: if the number of channels or the size of the images differs from the spec.
        """
        check_images(image, image_spec(self.image_encoder).input)
        embedding: Tensor = self.image_encoder(image)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - the release's
        """Return the embeddings of token ids, optionally of unit length.

        Raises:
            ValueError: if the number of ids per text differs from the spec's context length.
        """
        check_tokens(text, text_spec(self.text_encoder).input)
        embedding: Tensor = self.text_encoder(text)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised image embeddings, normalised text embeddings and `exp(logit_scale)`.

        `forward` does not clamp the logit scale, since a clamp has no gradient above its maximum. In training,
        `clamp_logit_scale` of `mobileclip.training.objectives` clamps the parameter after each step; `similarity_scale`
        is the clamped scale.
        """
        images, texts = self.encode_image(image, normalize=True), self.encode_text(text, normalize=True)
        return images, texts, self.logit_scale.reshape(()).exp()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also accept a zero-dimensional logit scale, as in checkpoints of Apple, open_clip and this library."""
        name = f"{prefix}logit_scale"
        if name in state_dict and state_dict[name].ndim == 0:
            state_dict[name] = state_dict[name].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Shared code of all teachers of drawings: two sides in one space, their loss, and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.quickstart.emoji.trunks import TextTrunk
from mobileclip.inputs import ImageInput
from mobileclip.storage import atomic_path

_MAX_LOGIT_SCALE = 100.0


class JointModel(nn.Module):
    """Projects images and text features to one space.

    Args:
        spec: settings of the model, with a name and a dim.
    """

    text: nn.Linear
    log_scale: nn.Parameter

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    @property
    def logit_scale(self) -> Tensor:
        """The logit scale, the factor of similarities."""
        return self.log_scale.exp().clamp(max=_MAX_LOGIT_SCALE)

    def encode_text(self, features: Tensor) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (batch, text dim) -> (batch, dim).
        """
        return F.normalize(self.text(features), dim=-1)


def contrast(image: Tensor, text: Tensor, names: Tensor) -> Tensor:
    """Return CLIP's contrastive loss within a batch; images with the same name match each other's captions.

    Shape:
        image, text: (batch, dim); names: (batch,).

    Args:
        image: embeddings of images, multiplied by the logit scale.
        text: embeddings of the captions.
        names: name indices of the images.
    """
    same = (names[:, None] == names).float()
    logits, targets = image @ text.T, same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@attrs.frozen(kw_only=True, eq=False)
class JointTeacher:
    """A trained model as a teacher.

    Args:
        name: the model's name and a digest of its weights.
        model: model that projects features to the joint space.
        encode_pixels: function from images, in the form of the contract, to normalised embeddings.
        text_trunk: function from texts to features.
        image: preprocessing of the images.
        weights_sha256: hash of the model's weights, without the trunks, which are fixed releases of packages.
    """

    name: str
    model: JointModel
    encode_pixels: Callable[[Tensor], Tensor]
    text_trunk: TextTrunk
    image: ImageInput
    weights_sha256: str

    @property
    def dim(self) -> int:
        """Dimension of the joint embedding."""
        return int(self.model.spec.dim)

    @property
    def logit_scale(self) -> float:
        """The learned logit scale, rounded to four digits."""
        return round(float(self.model.logit_scale), 2)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """
        return self.encode_pixels(pixels)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (number of texts, dim).
        """
        return self.model.encode_text(self.text_trunk(texts))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors with their metadata atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata or {}))

"""Any model that `mobileclip.load` takes, as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.encoders.checkpoints import Stored
from mobileclip.hardware.precision import WidePrecision, dtype_of
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import ImageInput
from mobileclip.reparam import reparameterize
from mobileclip.tensor_files.weights import weights_sha256

MAX_BATCH = 128


@attrs.frozen(kw_only=True, eq=False)
class ModelTeacher:
    """An image-text model as a teacher.

    Args:
        name: what people call it.
        clip: the model; it computes on its own device and in the precision of its weights.
        logit_scale: what it multiplies cosine similarities with; by default the model's own, to two decimals.
        max_batch: images, or texts, that are encoded at once, so that memory does not grow with what is asked for.
        weights_sha256: hash of the weights as they were loaded; computed where it is left out.
    """

    name: str
    clip: ImageTextModel
    logit_scale: float = attrs.field(validator=validators.gt(0))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))
    weights_sha256: str = attrs.field()

    @logit_scale.default
    def _logit_scale(self) -> float:
        return round(self.clip.similarity_scale, 2)

    @weights_sha256.default
    def _weights_sha256(self) -> str:
        return weights_sha256(self.clip.model.state_dict())

    @property
    def image(self) -> ImageInput:
        """The image contract of the model."""
        return self.clip.image_input

    @property
    def dim(self) -> int:
        """Dim of its joint embedding."""
        return self.clip.embedding_dim

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim) float32, on the CPU.
        """
        chunks = torch.split(pixels.movedim(1, -1), self.max_batch) if len(pixels) else ()
        rows = [self.clip.encode_pixels(chunk, normalize=False) for chunk in chunks]
        return torch.cat(rows) if rows else torch.zeros(0, self.dim)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts.

        Shape:
            (number of texts, dim) float32, on the CPU.
        """
        return self.clip.encode_text(list(texts), normalize=False, batch_size=self.max_batch)


def teacher_of(
    stored: Stored,
    name: Callable[[str], str],
    *,
    device: str,
    precision: WidePrecision,
    logit_scale: float | None,
    max_batch: int,
) -> ModelTeacher:
    """Return what a checkpoint holds as a teacher, folded.

    Args:
        stored: the content of the checkpoint.
        name: from the hash of its weights to what people call it.
        device: where it computes.
        precision: of the weights, after folding, and of the computation.
        logit_scale: what similarities are multiplied with; None for the model's own.
        max_batch: see `ModelTeacher`.

    Raises:
        ValueError: if it holds one tower.
    """
    if not isinstance(stored.spec, DualEncoderSpec):
        raise ValueError(f"{name('')} holds one tower, and a teacher needs both")
    # Of what is stored, in our names: folding may differ in the last bit from machine to machine.
    sha256 = weights_sha256(stored.tensors)
    built = stored.build()
    model = built if stored.form == "folded" else reparameterize(built, inplace=True)
    assert isinstance(model, DualEncoder)
    own_scale = round(float(model.similarity_scale.detach()), 2)
    model.requires_grad_(requires_grad=False).to(device=device, dtype=dtype_of(precision))
    called = name(sha256)
    return ModelTeacher(
        name=called if precision == "float32" else f"{called}/{precision}",
        clip=ImageTextModel(model),
        logit_scale=own_scale if logit_scale is None else logit_scale,
        max_batch=max_batch,
        weights_sha256=sha256,
    )

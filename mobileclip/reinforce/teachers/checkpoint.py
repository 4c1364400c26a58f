"""Any checkpoint of this library's models as a teacher."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
from attrs import validators

from mobileclip.data import Tokenizer
from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision, dtype_of
from mobileclip.reinforce.teachers.model import MAX_BATCH, ModelTeacher
from mobileclip.reinforce.teachers.spec import TeacherSpec, teachers
from mobileclip.reparam import reparameterize
from mobileclip.strict import strict
from mobileclip.tensor_files.weights import weights_sha256


@teachers.register("checkpoint")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CheckpointTeacher(TeacherSpec):
    """A model of this library, folded.

    Args:
        checkpoint: a file in the official, open_clip's or our own layout, in training form or folded, or
            `hf-hub:OWNER/NAME`.
        model: its name, such as `mobileclip_b`; None to find it from the file.
        logit_scale: what similarities are multiplied with; None for the model's own.
        precision: of the weights, after folding, and of the computation.
        max_batch: images, or texts, that are encoded at once.
    """

    checkpoint: str = attrs.field(converter=os.fspath)
    model: str | None = None
    logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))

    def build(self, device: str = "cpu") -> ModelTeacher:
        """Return the teacher, its weights loaded.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if the file does not fit the model.
            ValueError: if the name is unknown, or the checkpoint holds one tower.
        """
        stored = read_checkpoint(self.checkpoint, self.model)
        if not isinstance(stored.spec, DualEncoderSpec):
            raise ValueError(f"{self.checkpoint} holds one tower, and a teacher needs both")
        # Of what is stored, in our names: folding may differ in the last bit from machine to machine.
        sha256 = weights_sha256(stored.tensors)
        built = stored.build()
        model = built if stored.form == "folded" else reparameterize(built, inplace=True)
        assert isinstance(model, DualEncoder)
        own_scale = round(float(model.similarity_scale.detach()), 2)
        model.requires_grad_(requires_grad=False).to(device=device, dtype=dtype_of(self.precision))
        name = f"{Path(self.checkpoint).stem}-{sha256[:8]}"
        return ModelTeacher(
            name=name if self.precision == "float32" else f"{name}/{self.precision}",
            model=model,
            tokenizer=Tokenizer(stored.spec.text.input),
            image=stored.spec.image.input,
            dim=stored.spec.image.embedding_dim,
            logit_scale=own_scale if self.logit_scale is None else self.logit_scale,
            max_batch=self.max_batch,
            weights_sha256=sha256,
        )

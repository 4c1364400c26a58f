"""Any checkpoint of this library's models as a teacher."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
from attrs import validators

from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.reinforce.teachers.model import MAX_BATCH, ModelTeacher, teacher_of
from mobileclip.reinforce.teachers.spec import TeacherSpec, teachers
from mobileclip.strict import strict


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
        return teacher_of(
            read_checkpoint(self.checkpoint, self.model),
            lambda sha256: f"{Path(self.checkpoint).stem}-{sha256[:8]}",
            device=device,
            precision=self.precision,
            logit_scale=self.logit_scale,
            max_batch=self.max_batch,
        )

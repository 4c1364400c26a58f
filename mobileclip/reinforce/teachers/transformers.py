"""CLIP, MetaCLIP 2, SigLIP and SigLIP 2, through transformers, as teachers."""

from __future__ import annotations

import os

import attrs
from attrs import validators

from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.interop.transformers_models import TransformersSource, read_dual_encoder
from mobileclip.reinforce.teachers.model import MAX_BATCH, ModelTeacher, teacher_of
from mobileclip.reinforce.teachers.spec import TeacherSpec, teachers
from mobileclip.strict import strict


@teachers.register("transformers")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TransformersTeacher(TeacherSpec):
    """A dual encoder of transformers (extra `transformers`): of the kinds clip, metaclip_2 and siglip.

    A model that was trained by a sigmoid loss has a bias as well. It is left out: it is the same for all pairs, and a
    softmax over similarities does not see it. How its own transform makes an image square does not matter here:
    augmented images are square.

    Args:
        model: a folder that `save_pretrained` has written, or `OWNER/NAME` on the hub, such as
            `google/siglip2-so400m-patch14-384`.
        revision: of the hub's repository; None for the newest.
        logit_scale: what similarities are multiplied with; None for the model's own.
        precision: of the weights and the computation. bfloat16 is for GPUs, and for CPUs that compute in it.
        max_batch: images, or texts, that are encoded at once.

    Raises:
        ValueError: if it is neither a folder nor a name on the hub.
    """

    model: str = attrs.field(converter=os.fspath)
    revision: str | None = None
    logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))

    def build(self, device: str = "cpu") -> ModelTeacher:
        """Return the teacher, its weights loaded.

        Raises:
            ValueError: if there is no such model, weights are missing, or it is of another kind.
            ImportError: if transformers is missing.
        """
        source = TransformersSource(model=self.model, revision=self.revision)
        return teacher_of(
            read_dual_encoder(source),
            source.name,
            device=device,
            precision=self.precision,
            logit_scale=self.logit_scale,
            max_batch=self.max_batch,
        )

"""Any model of open_clip as a teacher."""

from __future__ import annotations

import attrs
from attrs import validators

from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.interop.open_clip_models import OpenClipSource, read_open_clip
from mobileclip.reinforce.teachers.model import MAX_BATCH, ModelTeacher, teacher_of
from mobileclip.reinforce.teachers.spec import TeacherSpec, teachers
from mobileclip.strict import strict


@teachers.register("open_clip")
@attrs.frozen(kw_only=True, field_transformer=strict)
class OpenClipTeacher(TeacherSpec):
    """A model of open_clip (extra `teachers`).

    How its own transform makes an image square does not matter here: augmented images are square.

    Args:
        model: a name that open_clip knows, such as `ViT-L-14`; `hf-hub:OWNER/NAME` or `local-dir:PATH`, which bring
            their weights; or the path of an architecture's JSON file.
        pretrained: a tag that open_clip knows for the model, or the path of a file of weights; None where the model
            brings its own. An architecture that differs from what the tag was trained with in QuickGELU alone is
            corrected.
        logit_scale: what similarities are multiplied with; None for the model's own.
        precision: of the weights and the computation. bfloat16 is for GPUs, and for CPUs that compute in it.
        max_batch: images, or texts, that are encoded at once.

    Raises:
        ValueError: if the weights are not said, or are said twice.

    Source: section 4 of the paper names the two defaults' like, `ViT-L-14` with `openai` and `datacomp_xl_s13b_b90k`.
    """

    model: str = attrs.field(default="ViT-L-14", validator=validators.min_len(1))
    pretrained: str | None = "openai"
    logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        self._source()

    def build(self, device: str = "cpu") -> ModelTeacher:
        """Return the teacher, its weights loaded.

        Raises:
            ValueError: if open_clip is missing, it does not know the model or the tag, or the weights do not fit.
        """
        return teacher_of(
            read_open_clip(self._source()),
            self._source().name,
            device=device,
            precision=self.precision,
            logit_scale=self.logit_scale,
            max_batch=self.max_batch,
        )

    def _source(self) -> OpenClipSource:
        return OpenClipSource(model=self.model, pretrained=self.pretrained)

"""The spec of a reinforcement: all options that determine the stored data."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs
from attrs import validators

from mobileclip.data import LAYOUTS, AugmentationSpec, ImageLimits, Layout
from mobileclip.data.samples.sample import SYN_NAME, SYN_TEXT
from mobileclip.datasets import Source, as_source
from mobileclip.datasets.sources import Unit
from mobileclip.reinforce.captioners import CaptionerSpec
from mobileclip.reinforce.teachers import TeacherSpec
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcementSpec:
    """The options of a reinforcement.

    With a captioner but without teachers, the job stores only captions; with teachers but without a captioner, the job
    stores embeddings of existing captions. One job can therefore write the captions, and later jobs can encode these
    captions with several sets of teachers.

    Args:
        source: the data to reinforce: a `Source`, or a path or pattern for `as_source`. Recipes leave source and output
            empty.
        output: directory of the reinforced shards, their manifest and their card; a local path or a URL.
        teachers: specs of the teachers; the job concatenates the embeddings in the order of the teachers.
        captioner: spec of the captioner for synthetic captions, such as `SeveralCaptioners`; None to keep the source's
            synthetic captions, if any.
        caption_set: name of a single captioner's caption set, `syn_text` or `syn_text_NAME`; several captioners name
            their own sets.
        augmentation: the augmentation policy; every teacher encodes the augmented image at the teacher's image size.
        num_augmentations: number of stored augmentations per image.
        seed: random seed of augmentations and captions; each augmentation or caption depends only on the seed, the
            sample's key and the index of the augmentation or caption.
        layout: storage layout: `npz` (float32) or `pth.gz` (bfloat16), as in the public data sets; or `compact`
            (bfloat16) or `compact8` (8 bits), with one small member per sample.
        batch_size: number of samples per batch, each with all augmentations.
        num_compared: maximum number of samples of the first shard on which to measure the teachers' agreement
            (`ViewAgreement`), at the cost of one more encoded image per sample; 0 for no measurement.
        limits: limits on work and memory per image; the job skips images beyond these limits.

    Raises:
        ValueError: if a number is out of range, or the layout or the caption set is not valid. The spec may have
            neither teachers nor a captioner, because callers of `reinforce` can pass loaded models.

    Examples:
        >>> augmentation = mobileclip.data.datacompdr_augmentation(256)
        >>> choices = {"source": "{00..31}.tar", "output": "reinforced", "augmentation": augmentation}
        >>> spec = ReinforcementSpec(**choices, captioner=CocaCaptioner())
        >>> spec.num_augmentations, spec.layout, type(spec.source).__name__
        (10, 'pth.gz', 'ShardSource')
    """

    source: Source | None = attrs.field(default=None, converter=attrs.converters.optional(as_source))
    output: str = attrs.field(default="", converter=os.fspath)
    teachers: tuple[TeacherSpec, ...] = attrs.field(default=(), converter=tuple[TeacherSpec, ...])
    captioner: CaptionerSpec | None = None
    caption_set: str = attrs.field(default=SYN_TEXT, validator=validators.matches_re(SYN_NAME))
    augmentation: AugmentationSpec
    num_augmentations: int = attrs.field(default=10, validator=validators.gt(0))
    seed: int = 0
    layout: Layout = attrs.field(default="pth.gz", validator=validators.in_(LAYOUTS))
    batch_size: int = attrs.field(default=8, validator=validators.gt(0))
    num_compared: int = attrs.field(default=256, validator=validators.ge(0))
    limits: ImageLimits = attrs.field(factory=ImageLimits)

    def units(self) -> Sequence[Unit]:
        """Return the units of the source.

        Raises:
            ValueError: if source or output is empty; see also `Source`.
        """
        if self.source is None or not self.output:
            missing = "source" if self.source is None else "output"
            raise ValueError(f"{missing} is missing: set both the data to reinforce and the output folder")
        return self.source.units()

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

    With a captioner but without teachers, the job stores only captions; with teachers but without a captioner, it
    stores embeddings of existing captions. Captions can therefore be written once, and encoded later by several sets of
    teachers.

    Args:
        source: the data, as a `Source` or a path or pattern for `as_source`. Recipes leave source and output empty.
        output: directory of the reinforced shards, their manifest and their card; a local path or a URL.
        teachers: teachers of the stored embeddings, which are concatenated in this order.
        captioner: captioner of the synthetic captions, or `SeveralCaptioners`; None for captions of the source, if any.
        caption_set: name of a single captioner's caption set, `syn_text` or `syn_text_NAME`; several captioners name
            their own sets.
        augmentation: the augmentation policy; every teacher encodes the augmented image at the teacher's image size.
        num_augmentations: stored augmentations per image.
        seed: random seed of augmentations and captions, which depend only on the seed, the sample's key and their own
            index.
        layout: `npz` (float32) or `pth.gz` (bfloat16), as in the public data sets; `compact` (bfloat16) or `compact8`
            (8 bits) for one small member.
        batch_size: number of samples per batch, with all their augmentations.
        num_compared: maximum number of samples of the first shard for measuring the teachers' agreement
            (`ViewAgreement`), with one more encoded image per sample; 0 for no measurement.
        limits: limits on work and memory per image; the job skips images beyond these limits.

    Raises:
        ValueError: if a number is out of range. `reinforce` checks that there are teachers or a captioner, since
            callers can pass loaded ones.

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

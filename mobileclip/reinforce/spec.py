"""The spec of a reinforcement: all options that decide the stored data."""

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
    """The choices of a reinforcement.

    With a captioner and no teachers it stores captions alone, with teachers and no captioner embeddings of the captions
    that are there, and with both everything in one go: captions once, several sets of teachers later.

    Args:
        source: what is reinforced; a path or pattern says the kind by itself. A recipe leaves it and the output open.
        output: directory of the reinforced shards, their manifest and their card; local or a URL.
        teachers: whose embeddings are stored, concatenated in this order.
        captioner: who writes synthetic captions, `SeveralCaptioners` for several; None for the ones in the source, if
            any.
        caption_set: name of the set of one captioner, `syn_text` or `syn_text_NAME`; several name their own.
        augmentation: the policy; every teacher sees the augmented image at its own size.
        num_augmentations: stored augmentations per image.
        seed: of augmentations and captions; both depend on the seed, the sample's key and their index alone.
        layout: `npz` for float32 embeddings and `pth.gz` for bfloat16 ones, as the public data sets have them;
            `compact` for bfloat16 and `compact8` for 8-bit ones in one small member.
        batch_size: samples that are encoded at once, with all their augmentations.
        num_compared: samples of the first shard, at most, on which it is measured how far the teachers still recognise
            the stored views (`ViewAgreement`); one more image each is encoded for it. 0 measures nothing.
        limits: of the work and memory that one image may cost; one beyond them is skipped.

    Raises:
        ValueError: if a number is out of its range. With neither teachers nor a captioner, it is `reinforce` that
            refuses: `InlineEngine` may bring teachers of its own.

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
            ValueError: if no source or no output is chosen; see `Source` too.
        """
        if self.source is None or not self.output:
            missing = "source" if self.source is None else "output"
            raise ValueError(f"{missing} is missing: choose what is reinforced, and the folder that it is written to")
        return self.source.units()

"""The spec of a join of reinforced shards with the shards that hold their images."""

from __future__ import annotations

import json

import attrs
from attrs import validators
from tyro.conf import Positional

from mobileclip import storage
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.strict import strict
from mobileclip.terminal.common import Rare

INDEX = "index"


@attrs.frozen(kw_only=True, field_transformer=strict)
class JoinSpec:
    """The inputs, output and options of a join of reinforced shards with shards of images.

    Args:
        reinforced: shards with captions, augmentations and embeddings: paths, URLs or patterns.
        images: shards with the images, uncompressed tar files.
        captions: shards with the real captions, of the same names as the reinforced ones: their folder, its URL, or
            a pattern. None takes the caption beside the image where a sample has none.
        output: directory or URL of the joined shards, which have the names of the reinforced ones.
        index: folder on this machine for where every image is and what samples are called; `index` in the output by
            default. It can serve several joins, also at once.
        by: what tells which image belongs to a sample: `key`, or a field of the images' JSON, such as `uid`, that
            equals the same field of the sample's JSON, or the sample's key where that states none; `url` is compared
            with the sample's URL instead.
        placeholder_threshold: an image under that many keys is reported as a placeholder; 0 looks for none, which saves
            reading all images once.
        drop_placeholders: leave samples out whose image is a placeholder.
        check_images: decode every image, and leave samples out whose image is broken.
        keep_other: keep samples whose image is another one than they state, by its hash or its original size.
        min_share: share of the samples, 0 to 1, that must be joined for exit status 0; at least one must be.
        go_on: join the other shards even if not one sample of the first one is joined.
        sample_limits: of what is read of a sample.

    Raises:
        ValueError: if choices contradict each other.
    """

    reinforced: Positional[str]
    images: Positional[str]
    output: str
    captions: str | None = None
    index: Rare[str | None] = None
    by: str = attrs.field(default="key", validator=validators.min_len(1))
    placeholder_threshold: Rare[int] = attrs.field(default=10, validator=validators.ge(0))
    drop_placeholders: Rare[bool] = False
    check_images: bool = False
    keep_other: Rare[bool] = False
    min_share: float = attrs.field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    go_on: Rare[bool] = False
    sample_limits: Rare[SampleLimits] = SAMPLE_LIMITS

    def __attrs_post_init__(self) -> None:
        if self.placeholder_threshold == 1:
            raise ValueError("placeholder_threshold must be at least 2, or 0 to look for none: every picture has a key")
        if self.drop_placeholders and not self.placeholder_threshold:
            raise ValueError("drop_placeholders needs a placeholder_threshold of at least 2")
        if self.index is None and storage.is_remote(self.output):
            raise ValueError(f"the index is a local folder; say where with index, as the output {self.output} is not")

    @property
    def choices(self) -> str:
        """The settings that the joined shards depend on, as JSON: another value makes other shards."""
        dropped = self.placeholder_threshold if self.drop_placeholders else 0
        return json.dumps(
            {
                "by": self.by,
                "placeholders_dropped_from": dropped,
                "check_images": self.check_images,
                "keep_other": self.keep_other,
                "captions": self.captions is not None,
            }
        )

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
        captions: shards of real captions with the names of the reinforced shards: their folder, its URL, or a pattern.
            None takes missing captions from the image's sample.
        output: directory or URL of the joined shards, which have the names of the reinforced ones.
        index: local folder of the index; by default `index` in the output. Several joins may share it, also
            concurrently.
        by: the common value of image and sample: `key`; a field of both JSON members, such as `uid` (with the sample's
            key as fallback); or `url`, compared with the sample's URL.
        placeholder_threshold: least number of keys of a placeholder image; 0 skips the search, and so a pass over all
            images.
        drop_placeholders: skip samples with a placeholder image.
        check_images: decode every image, and skip samples with a broken image.
        keep_other: keep samples with another image, by hash or original size.
        min_share: least share of joined samples for exit status 0, from 0 to 1; at least one sample.
        go_on: continue even if the first shard has no match.
        sample_limits: limits for reading a sample.

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
            raise ValueError("placeholder_threshold must be at least 2, or 0 to skip the search: every image has a key")
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

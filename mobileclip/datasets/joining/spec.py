"""The settings of a join between reinforced shards and the shards that hold their images."""

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
    """The inputs, output and options of a join between reinforced shards and image shards.

    Args:
        reinforced: reinforced shards, with captions, augmentations and embeddings: paths, URLs or patterns.
        images: shards with the images, as uncompressed tar files: paths, URLs or patterns.
        captions: shards of real captions, named like the reinforced shards: a folder, a folder URL, or a pattern. If
            None, the join takes missing captions from the image's sample.
        output: directory or URL for the joined shards. Each joined shard has the name of its reinforced shard.
        index: local folder of the image index; None for the folder `index` in the output. Several joins may share an
            index, also concurrently.
        by: identifier that images and samples share: `key`; a field of both JSON members, such as `uid` (samples
            without the field use their key); or `url`, the URL of the download.
        placeholder_threshold: minimum number of keys with the same image, for the image to be a placeholder; 0 skips
            the search for placeholders, which reads all images.
        drop_placeholders: whether to skip samples with a placeholder image.
        check_images: whether to decode every image, and skip samples with a broken image.
        keep_other: whether to keep samples whose image differs from the stated hash or original size.
        min_share: minimum share of joined samples, from 0 to 1, for exit status 0; exit status 0 also needs at least
            one joined sample.
        continue_on_mismatch: whether to continue if the first shard has no match.
        sample_limits: limits for reading a sample.

    Raises:
        ValueError: if two options contradict each other, or a number is out of range.
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
    continue_on_mismatch: Rare[bool] = False
    sample_limits: Rare[SampleLimits] = SAMPLE_LIMITS

    def __attrs_post_init__(self) -> None:
        if self.placeholder_threshold == 1:
            raise ValueError(
                "placeholder_threshold is 1, but every image has a key; expected 0 for no search, or at least 2"
            )
        if self.drop_placeholders and not self.placeholder_threshold:
            raise ValueError("drop_placeholders needs a placeholder_threshold of at least 2")
        if self.index is None and storage.is_remote(self.output):
            raise ValueError(f"the index needs a local folder, but the output {self.output} is remote; set index")

    @property
    def choices(self) -> str:
        """The settings that determine the content of the joined shards, as JSON."""
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

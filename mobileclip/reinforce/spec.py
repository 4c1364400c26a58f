"""The choices of a reinforcement job."""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs
from attrs import validators

from mobileclip.data import AugmentationSpec
from mobileclip.data.sample import Layout


def _patterns(shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    shards = [shards] if isinstance(shards, (str, os.PathLike)) else shards
    return tuple(os.fspath(shard) for shard in shards)


@attrs.frozen(kw_only=True)
class ReinforcementSpec:
    """The choices of a reinforcement job.

    Args:
        shards: paths or brace patterns of the image-text shards; their names must differ, the results bear the same.
        output: directory of the reinforced shards and of their card.
        augmentation: the policy; every teacher sees the augmented image at its own size.
        num_augmentations: stored augmentations per image.
        seed: of the augmentations; one depends on the seed, the sample's key and its index alone.
        layout: `npz` for float32 embeddings, `pth.gz` for bfloat16 ones.
        batch_size: samples whose augmentations are encoded at once.
        num_workers: batches in work at once, each in a thread of its own; more than one pays on a CPU, where a small
            network does not fill two cores.

    Raises:
        ValueError: if a number is out of its range.
    """

    shards: tuple[str, ...] = attrs.field(converter=_patterns)
    output: str = attrs.field(converter=os.fspath)
    augmentation: AugmentationSpec
    num_augmentations: int = attrs.field(default=10, validator=validators.gt(0))
    seed: int = 0
    layout: Layout = attrs.field(default="npz", validator=validators.in_(("npz", "pth.gz")))
    batch_size: int = attrs.field(default=8, validator=validators.gt(0))
    num_workers: int = attrs.field(default=1, validator=validators.gt(0))

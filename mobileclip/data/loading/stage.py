"""Examples of samples that another reader brings, such as webdataset: a stage of its pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from mobileclip.data.loading.dataset import ExampleType, Maker
from mobileclip.data.skips import Skip, attempt


def make_examples(
    samples: Iterable[Mapping[str, Any]],
    *,
    maker: Maker[Any, ExampleType, Any],
    epoch: int,
    on_skip: Callable[[Skip], None],
) -> Iterator[ExampleType]:
    """Yield what an epoch takes of every sample that can be used; batches are what `maker.collate` makes of them.

    Whoever reads the shards answers for what a member may hold at most.

    Args:
        samples: content of members by extension, as bytes, with `__key__` and, where it is known, `__url__`; as
            `webdataset.tarfile_to_samples` yields them, not decoded.
        maker: such as an `ExampleMaker`.
        epoch: its number, from 0; decides the augmentations and the captions.
        on_skip: called with what had to be left out, such as `SkipReport.add`.
    """
    for sample in samples:
        example = attempt(
            partial(_example, sample, maker, epoch),
            key=str(sample.get("__key__", "")),
            shard=str(sample.get("__url__", "")),
            on_skip=on_skip,
        )
        if example is not None:
            yield example


def _example(sample: Mapping[str, Any], maker: Maker[Any, ExampleType, Any], epoch: int) -> ExampleType:
    members = {name: content for name, content in sample.items() if isinstance(content, bytes)}
    return maker.example(maker.parse(sample["__key__"], members), epoch)

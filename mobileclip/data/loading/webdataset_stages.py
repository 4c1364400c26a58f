"""The loader as stages of webdataset pipelines: shard order, samples, filter, examples.

Each stage takes what the one before yields, in the dictionaries that webdataset's own stages take and yield.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from mobileclip.data.loading.order import NUM_READERS, EndlessOrder
from mobileclip.data.loading.reading import ExampleType, Maker
from mobileclip.data.loading.uids import Keep
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import Shards, expand_shards, parse_each, read_shard
from mobileclip.data.skips import Skip, SkipReport, attempt
from mobileclip.storage import FileCache

_EPOCH = "__epoch__"


def endless_shards(
    source: Shards, *others: Shards, weights: Sequence[float] = (), seed: int = 0, shuffle: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield shards without end, every source as often as its weight says: the first stage of a pipeline.

    Each is a dictionary of `url`, and `epoch`: how often the shard came before. The order is the loader's with sampling
    `endless`, its readers one after another. All processes and workers get the same one: `webdataset.split_by_node` and
    `split_by_worker` divide it among them.

    Args:
        source: paths or patterns, as `expand_shards` takes them.
        others: those of further sources.
        weights: share of each source's shards; none for one of its number of shards.
        seed: seed of the order.
        shuffle: whether to shuffle the shards, anew whenever all of them have come.

    Raises:
        ValueError: if there are not as many weights as sources, a weight is too small, or a source has no shard.
    """
    order = EndlessOrder(
        sources=tuple(expand_shards(one) for one in (source, *others)),
        weights=tuple(weights),
        most_readers=NUM_READERS,
        seed=seed,
        shuffle=shuffle,
        may_share=True,
    )
    for turn in count():
        for reader in range(order.num_readers):
            for segment in order.segments(reader, turn):
                yield {"url": segment.shard, "epoch": segment.epoch}


def read_shards(
    shards: Iterable[Mapping[str, Any]],
    *,
    on_skip: Callable[[Skip], None],
    cache: FileCache | None = None,
    limits: SampleLimits = SAMPLE_LIMITS,
) -> Iterator[dict[str, Any]]:
    """Yield the samples of shards, within limits: a stage in the place of `webdataset.tarfile_to_samples`.

    Each is a dictionary of its members' content by extension, as bytes, with `__key__`, `__url__` and, where it is
    known, `__epoch__`. A damaged shard costs what cannot be read of it.

    Args:
        shards: dictionaries of `url` and, where it is known, `epoch`, as `endless_shards` and
            `webdataset.SimpleShardList` yield them.
        on_skip: called with what had to be left out; `SkipReport.add` counts it in the report, from workers too.
        cache: where copies of remote shards are kept; none keeps none.
        limits: limits of what is read of a sample.
    """
    for shard in shards:
        known = {"__url__": shard["url"]} | ({_EPOCH: shard["epoch"]} if "epoch" in shard else {})
        raws = read_shard(shard["url"], on_skip, limits, cache=cache)
        for sample in parse_each(raws, lambda key, members: {"__key__": key, **members}, on_skip):
            yield sample | known


def keep_samples(
    samples: Iterable[Mapping[str, Any]], *, keep: Keep, report: SkipReport | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the samples that are used: a stage in front of `make_examples`.

    Args:
        samples: content of members by extension, as bytes, with `__key__`.
        keep: such as a `UidList`.
        report: counts those that are passed over.
    """
    for sample in samples:
        if keep(str(sample.get("__key__", "")), _members(sample)):
            yield sample
        elif report is not None:
            report.num_unwanted += 1


def make_examples(
    samples: Iterable[Mapping[str, Any]],
    *,
    maker: Maker[Any, ExampleType, Any],
    epoch: int | None = None,
    on_skip: Callable[[Skip], None],
) -> Iterator[ExampleType]:
    """Yield an example of every usable sample; `maker.collate` makes batches of them.

    The reader of the shards bounds what a member may hold.

    Args:
        samples: content of members by extension, as bytes, with `__key__` and, where it is known, `__url__`; as
            `read_shards` or `webdataset.tarfile_to_samples` yields them, not decoded.
        maker: such as an `ExampleMaker`.
        epoch: its number, from 0; decides the augmentations and the captions. None takes that of each sample, which it
            has from `endless_shards` and `read_shards`.
        on_skip: called with what had to be left out; `SkipReport.add` counts it in the report, from workers too, and
            what is used.

    Raises:
        ValueError: if nothing says the epoch.
    """
    report = getattr(on_skip, "__self__", None)
    for sample in samples:
        own_epoch = sample.get(_EPOCH) if epoch is None else epoch
        if own_epoch is None:
            raise ValueError(
                f"sample {sample.get('__key__')!r} does not say its epoch; give make_examples one, or take the shards "
                "from endless_shards and their samples from read_shards"
            )
        example = attempt(
            partial(_example, sample, maker, own_epoch),
            key=str(sample.get("__key__", "")),
            shard=str(sample.get("__url__", "")),
            on_skip=on_skip,
        )
        if example is not None:
            if isinstance(report, SkipReport):
                report.num_read += 1
            yield example


def _example(sample: Mapping[str, Any], maker: Maker[Any, ExampleType, Any], epoch: int) -> ExampleType:
    return maker.example(maker.parse(sample["__key__"], _members(sample)), epoch)


def _members(sample: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: content for name, content in sample.items() if isinstance(content, bytes)}

"""Stages for webdataset pipelines: shard order, reading of samples, selection and examples.

Each stage iterates over the dictionaries of the previous stage, in the format of webdataset's stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from mobileclip.data.loading.order import NUM_READERS, ShuffledShards
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
    """Yield an endless stream of shards, with sources in proportion to their weights; the first stage of a pipeline.

    Each shard is a dictionary of `url` and `epoch` (the number of earlier passes). The order is the order of a
    `Pipeline` with sampling `endless`, one shard per reader in turn. All processes and workers get the same order;
    `webdataset.split_by_node` and `split_by_worker` divide the stream.

    Args:
        source: paths or patterns of the first source, as for `expand_shards`.
        others: paths or patterns of further sources.
        weights: weight of each source; an empty sequence weights the sources by their numbers of shards.
        seed: seed of the order.
        shuffle: whether to shuffle the shards in every pass.

    Raises:
        ValueError: if the numbers of weights and sources differ, a source's weight is too small for one reader, or a
            source has no shard.
    """
    order = ShuffledShards(
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
    """Yield the samples of shards; this stage replaces `webdataset.tarfile_to_samples`.

    Each sample is a dictionary of its members' bytes by extension, with `__key__`, `__url__` and, if known,
    `__epoch__`. The stage also yields the readable samples of a damaged shard.

    Args:
        shards: dictionaries of `url` and, if known, `epoch`, from `endless_shards` or `webdataset.SimpleShardList`.
        on_skip: function, such as `SkipReport.add`, that receives each skip; each DataLoader worker counts in its own
            copy of the report.
        cache: folder for copies of remote shards; None for no copies.
        limits: limits on the size of a sample.
    """
    for shard in shards:
        known = {"__url__": shard["url"]} | ({_EPOCH: shard["epoch"]} if "epoch" in shard else {})
        raws = read_shard(shard["url"], on_skip, limits, cache=cache)
        for sample in parse_each(raws, lambda key, members: {"__key__": key, **members}, on_skip):
            yield sample | known


def keep_samples(
    samples: Iterable[Mapping[str, Any]], *, keep: Keep, report: SkipReport | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the samples that `keep` selects; a stage before `make_examples`.

    Args:
        samples: dictionaries of member content by extension, as bytes, with `__key__`.
        keep: function, such as a `UidList`, that selects the samples.
        report: report that counts the samples rejected by `keep`; None counts nothing.
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
    """Yield one example for every usable sample; `maker.collate` makes batches of examples.

    The stage that reads the shards limits the size of members; `make_examples` does not.

    Args:
        samples: dictionaries of undecoded member content by extension, with `__key__` and, if known, `__url__`, from
            `read_shards` or `webdataset.tarfile_to_samples`.
        maker: maker of examples, such as an `ExampleMaker`.
        epoch: number of the epoch, from 0; determines augmentations and captions. None uses each sample's `__epoch__`
            from `endless_shards` and `read_shards`.
        on_skip: function, such as `SkipReport.add`, that receives each skip. A `SkipReport` then also counts the used
            samples; each DataLoader worker counts in its own copy of the report.

    Raises:
        ValueError: if `epoch` is None and a sample has no `__epoch__`.
    """
    report = getattr(on_skip, "__self__", None)
    for sample in samples:
        own_epoch = sample.get(_EPOCH) if epoch is None else epoch
        if own_epoch is None:
            raise ValueError(
                f"sample {sample.get('__key__')!r} has no epoch; pass an epoch to make_examples, or use "
                "endless_shards and read_shards"
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

"""The base class of all pipelines, from shards to named batches, in one or several processes.

The example of a sample depends only on the seed, the epoch and the sample's key. The samples of a batch depend only on
the spec and the number of the batch. Batches are therefore bit-identical for any number of workers, and the batches of
all processes together contain the same samples for any number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from attrs import validators
from torch.utils.data import IterableDataset, get_worker_info

from mobileclip.data.loading.batch import BatchType, interleaved, join_batches
from mobileclip.data.loading.examples import ExampleSpec
from mobileclip.data.loading.order import (
    NUM_READERS,
    SAMPLINGS,
    EpochOrder,
    Order,
    Sampling,
    ShuffledShards,
    StreamPosition,
    data_digest,
)
from mobileclip.data.loading.reading import Chunk, Chunks, Maker, SampleReading, ShardReader
from mobileclip.data.loading.uids import Keep, UidList
from mobileclip.data.loading.worker_pool import LostWorkerError, WorkerPool
from mobileclip.data.randomness import derived_seed
from mobileclip.data.shards.files import paths_of
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.data.workers import LostProcessError
from mobileclip.machine import raise_machine_fault
from mobileclip.processes import this_process
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import FileCache, StoreLimits, use_limits
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Number of recent steps with a known position: a consumer that prefetches batches asks for an earlier position.
_KNOWN_STEPS = 4
# Number of successive worker deaths at the same step after which the stream fails.
_MOST_LOST = 3
# Maximum number of skips that are stored until `take_skips`; all skips are counted.
_MOST_NAMED = 1_000_000


# Without slots, because only one base of a class may have slots.
@attrs.frozen(kw_only=True, field_transformer=strict, slots=False)
class PipelineSpec(ExampleSpec):
    """The settings of all pipelines, in addition to the settings of `ExampleSpec`.

    Args:
        shards: paths or brace patterns of the shards.
        batch_size: number of samples per batch. In a training run, the processes share a batch of this size; a pipeline
            used directly yields batches of this size in every process.
        sampling: `epoch`, `endless` or `with_replacement`. `epoch` reads every sample once per epoch. `endless` repeats
            the shards in random order without knowing the number of samples; an epoch has as many batches as
            `num_samples` samples fill. `with_replacement` is like `endless`, but draws shards with replacement, like
            the released training scripts.
        weights: relative share of each item of `shards` in every batch; an empty tuple samples all shards equally. Not
            supported with sampling `epoch`.
        epochs: number of epochs per iteration over the pipeline.
        shuffle: whether to shuffle the shards and, within a buffer, the samples. If False, a single reader yields
            samples in stored order.
        num_readers: number of shards that all processes together read in parallel; each reader has the same share of
            every batch. The number must be a multiple of the number of processes. Small data sets use fewer readers:
            with sampling `epoch`, the largest divisor of `num_readers` that exceeds neither the number of samples nor
            four times the number of shards; otherwise, the largest divisor that does not exceed the number of shards.
        shuffle_buffer: number of encoded samples in the buffer of every reader. The order of shards is uniform, but the
            order of samples within a shard is not: two samples enter the buffer for each sample that leaves, so sample
            `i` leaves at position `i / 2` at the earliest. In a shard that fits into the buffer, the first sample comes
            after 12 % of the samples on average, and the last after 70 %. Shuffle samples when you write shards.
        num_workers: number of worker processes that read, decode and augment, at most one per reader; 0 uses only this
            process.
        uids: file that lists the samples to use, as for `mobileclip.data.loading.uids.UidList`; None uses all samples.
            Not supported with sampling `epoch`.
        cache: folder that stores copies of remote shards for later reads; None stores no copies.
        cache_bytes: maximum total size of the copies, in bytes; the cache removes the oldest copies first.
        worker_seconds: maximum time to wait for a worker's next batch, in seconds.
        stores: timeouts and other limits for remote stores. Specs that differ only in `stores`, the cache settings,
            `worker_seconds` or `num_workers` compare equal.
        drop_last: whether to drop the last samples of an epoch if they do not fill a batch; only sampling `epoch` has
            such samples.
        num_samples: number of samples in all shards. If None, the pipeline counts the samples when necessary, but `len`
            raises a TypeError.

    Raises:
        ValueError: if an option of `ExampleSpec` is invalid, `sampling` is unknown, a number is out of range, the
            numbers of `weights` and `shards` differ, or weights or uids are set with sampling `epoch`.
    """

    shards: tuple[str, ...] = attrs.field(converter=paths_of)
    batch_size: int = attrs.field(validator=validators.gt(0))
    sampling: Sampling = attrs.field(default="epoch", validator=validators.in_(SAMPLINGS))
    epochs: int = attrs.field(default=1, validator=validators.gt(0))
    weights: tuple[float, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.gt(0)))
    shuffle: bool = True
    num_readers: int = attrs.field(default=NUM_READERS, validator=validators.gt(0))
    shuffle_buffer: int = attrs.field(default=100, validator=validators.gt(0))
    num_workers: int = attrs.field(default=0, validator=validators.ge(0), eq=False)
    uids: Path | None = None
    cache: Path | None = attrs.field(default=None, eq=False)
    cache_bytes: int = attrs.field(default=10**11, validator=validators.gt(0), eq=False)
    worker_seconds: float = attrs.field(default=1800.0, validator=validators.gt(0), eq=False)
    stores: StoreLimits = attrs.field(factory=StoreLimits, eq=False)
    drop_last: bool = True
    num_samples: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.uids is not None and self.sampling == "epoch":
            raise ValueError(
                "with `uids`, the length of an epoch is unknown; choose sampling `endless` or `with_replacement`"
            )
        if self.weights and (self.sampling == "epoch" or len(self.weights) != len(self.shards)):
            raise ValueError(
                "weights require sampling `endless` or `with_replacement`, and one weight per item of shards; got "
                f"{len(self.weights)} for {len(self.shards)} items with sampling `{self.sampling}`"
            )

    @property
    def file_cache(self) -> FileCache | None:
        """Cache of remote shards; None if `cache` is None."""
        return None if self.cache is None else FileCache(path=self.cache, max_bytes=self.cache_bytes)


@attrs.frozen(kw_only=True)
class _Progress:
    """Progress of an iteration.

    Args:
        epoch: current epoch.
        first_epoch: first epoch of the iteration.
        position: position in the epoch after the last batch that left no samples over for the next batch.
        num_since: number of batches since `position`.
    """

    epoch: int = 0
    first_epoch: int = 0
    position: StreamPosition = StreamPosition()
    num_since: int = 0


class Pipeline(IterableDataset[BatchType], ABC):
    """An iterable of named batches; with sampling `epoch`, every epoch yields every usable sample once.

    A pipeline is a torch `IterableDataset` of whole batches with its own workers; wrap a pipeline in a DataLoader with
    `DataLoader(pipeline, batch_size=None)`.

    In a distributed run, every process yields an equal share of every batch; `mobileclip.processes` provides the rank
    of the process. See `mobileclip.data.loading.order` for the assignment of samples to processes.

    Args:
        spec: settings of the pipeline.
        reader: reader of the shards.
        keep: function `(key, members) -> bool` that returns whether to use a sample; None uses the samples in the
            spec's `uids`, or all samples. Not supported with sampling `epoch`. Workers that are not forked get a
            pickled copy of the function.

    Raises:
        ValueError: if `keep` is passed with sampling `epoch`, because the length of an epoch would be unknown.
    """

    def __init__(self, spec: PipelineSpec, *, reader: ShardReader, keep: Keep | None = None) -> None:
        if keep is not None and spec.sampling == "epoch":
            raise ValueError(
                "with `keep`, the length of an epoch is unknown; choose sampling `endless` or `with_replacement`"
            )
        self.spec = spec
        self._keep = UidList(spec.uids) if keep is None and spec.uids is not None else keep
        self._reader, self.shards = reader, reader.names
        process = this_process()
        self.rank, self.world_size = process.rank, process.size
        self._batch_size = spec.batch_size * process.size
        self._first_epoch = 0
        self._progress, self._resumed = _Progress(), cast("_Progress | None", None)
        self.report = SkipReport()
        """Counts of the samples that this process read and skipped in the current (or latest) epoch or stream."""
        self.num_lost = 0
        """Number of workers that died and were replaced."""
        # Positions of this process after the last batches; the digest of the data is added on request.
        self._known: deque[StreamPosition] = deque(maxlen=_KNOWN_STEPS)
        # Skips that were not taken yet, each with the number of its batch.
        self._left_out: deque[tuple[int, Skip]] = deque(maxlen=_MOST_NAMED)

    @abstractmethod
    def _maker(self) -> Maker[Any, Any, BatchType]:
        """Return the maker of batches."""

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """Number of samples of every shard, as stored or counted."""
        with use_limits(self.spec.stores):
            return self._reader.sizes(self.spec.sample_limits)

    @cached_property
    def _order(self) -> Order:
        """Order in which the readers read the samples.

        Raises:
            ValueError: if the readers cannot be divided among the processes.
        """
        spec = self.spec
        order: Order
        choices: dict[str, Any] = {"most_readers": spec.num_readers, "seed": spec.seed, "shuffle": spec.shuffle}
        if spec.sampling == "epoch":
            order = EpochOrder(names=self.shards, sizes=self._sizes, **choices)
        else:
            replacement = spec.sampling == "with_replacement"
            order = ShuffledShards(
                sources=self._reader.sources, weights=spec.weights, replacement=replacement, **choices
            )
        if order.num_readers % self.world_size:
            raise ValueError(
                f"{order.num_readers} readers cannot be divided among {self.world_size} processes: the reader count "
                "divides num_readers and is limited by the number of samples or, in endless sampling, of shards. "
                f"Choose num_readers as a multiple of {self.world_size}, or write more shards"
            )
        return order

    @cached_property
    def _digest(self) -> str:
        return data_digest(self.shards, self._sizes if self.spec.sampling == "epoch" else ())

    def __len__(self) -> int:
        """Return the number of batches that an iteration yields in this process if no sample is skipped.

        Raises:
            TypeError: if `num_samples` is None.
        """
        if self.spec.num_samples is None:
            raise TypeError("the number of batches is unknown; set num_samples, for example to count_samples(shards)")
        return self.spec.epochs * self._batches_per_epoch(self.spec.num_samples)

    def __iter__(self) -> Iterator[BatchType]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"each of the DataLoader's {worker.num_workers} workers would yield all batches; set num_workers "
                "in the pipeline instead, and pass num_workers=0 to the DataLoader"
            )
        fresh = _Progress(epoch=self._first_epoch, first_epoch=self._first_epoch)
        self._progress, self._resumed = self._resumed or fresh, None
        return self._all_epochs(self._progress)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch with which the next iteration starts; loaders that count epochs call this method.

        Args:
            epoch: number of the epoch, from 0.
        """
        self._first_epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the iteration in this process, for `load_state_dict`."""
        position = attrs.evolve(self._progress.position, data=self._digest if self._progress.position.places else "")
        return {**attrs.asdict(self._progress, recurse=False), "position": to_json(position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration resume from a state.

        Args:
            state: return value of `state_dict`.
        """
        self._progress = self._resumed = _Progress(
            **{**state, "position": from_json(state["position"], StreamPosition)}
        )

    def _all_epochs(self, start: _Progress) -> Iterator[BatchType]:
        for epoch in range(start.epoch, start.first_epoch + self.spec.epochs):
            begin = start if epoch == start.epoch else _Progress(epoch=epoch, first_epoch=start.first_epoch)
            for progress, batch in self._followed(begin):
                self._progress = progress
                yield batch

    def _followed(self, start: _Progress) -> Iterator[tuple[_Progress, BatchType]]:
        """Yield the remaining batches of an epoch, each with the progress after the batch."""
        if isinstance(self._order, EpochOrder):
            yield from islice(self._whole_epoch(start), start.num_since, None)
            return
        num_samples = sum(self._sizes) if self.spec.num_samples is None else self.spec.num_samples
        position = start.position
        if not position.places:
            places = [(reader, *place) for reader, place in enumerate(self._order.start(start.epoch))]
            position = StreamPosition(num_readers=self._order.num_readers, places=places)
        for batch in islice(self.stream(position), self._batches_per_epoch(num_samples) - position.first_batch):
            yield attrs.evolve(start, position=self._known[-1]), batch

    def epoch(self, epoch: int) -> Iterator[BatchType]:
        """Yield one epoch's batches: every usable sample once or, with endless sampling, the same number of samples.

        Args:
            epoch: number of the epoch, from 0; determines the order, the augmentations and the captions.

        Raises:
            ValueError: if the shards have no usable sample, or the number of samples is unknown.
        """
        return (batch for _, batch in self._followed(_Progress(epoch=epoch)))

    def stream(self, position: StreamPosition | None = None) -> Iterator[BatchType]:
        """Yield an endless stream of batches from any position; a resumed run gets the same batches.

        All batches are complete in every process: the next samples replace skipped samples. With sampling `epoch`,
        the stream drops the last samples of an epoch if they do not fill a batch. A resumed stream opens one shard per
        reader and decodes no earlier sample, for any number of workers and processes.

        Args:
            position: position of an earlier stream, of this process or of all processes together; None starts at the
                beginning.

        Raises:
            ValueError: if the samples do not fill one batch, no sample is usable, or the position belongs to different
                data or a different number of readers.
        """
        start = self._taken_up(StreamPosition() if position is None else position)
        self._left_out.clear()
        self._known.clear()
        self._known.append(start)
        for now, chunks in self._steps(start):
            self._known.append(now)
            self._left_out.extend((now.first_batch, skip) for chunk in chunks for skip in chunk.skips)
            batch = _whole(chunks)
            if batch is None or any(chunk.gave_up for chunk in chunks):
                raise ValueError(self._nothing())
            yield batch

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position after a number of batches of the current stream.

        Args:
            num_batches: number of consumed batches, including the batches before the stream was resumed.

        Raises:
            ValueError: if the stream has not yielded `num_batches` batches, or has yielded more than three
                batches since.
        """
        if num_batches == 0:
            return StreamPosition()
        for known in self._known:
            if known.first_batch == num_batches:
                return attrs.evolve(known, data=self._digest)
        raise ValueError(
            f"the position after batch {num_batches} is not stored, only the positions after "
            f"{[known.first_batch for known in self._known]}; request a position before consuming further "
            "batches"
        )

    def take_skips(self, num_batches: int) -> list[Skip]:
        """Return this process's skips in the first batches of the current stream; every skip is returned only once.

        Args:
            num_batches: number of consumed batches, including the batches before the stream was resumed.
        """
        skips = []
        while self._left_out and self._left_out[0][0] <= num_batches:
            skips.append(self._left_out.popleft()[1])
        return skips

    def _taken_up(self, position: StreamPosition) -> StreamPosition:
        """Return this process's part of the position from which to continue.

        Raises:
            ValueError: if the position belongs to different data or a different number of readers.
        """
        order = self._order
        if position.data and position.data != self._digest:
            raise ValueError(
                f"the saved position does not match this data: the names or the sizes of the {len(self.shards)} shards "
                "have changed. Use the original shards, or start a new run from this run's weights"
            )
        if position.num_readers not in (0, order.num_readers):
            raise ValueError(
                f"the position has {position.num_readers} readers, but the order has {order.num_readers}: "
                "num_readers, the shards or their sizes have changed"
            )
        first = position.first_batch
        if first and not position.places and next(order.steps(first, self._batch_size))[1].start:
            raise ValueError(
                f"the position after batch {position.first_batch} lacks the positions of the readers; take the "
                "position from the checkpoint, or from the stream that reached this batch"
            )
        places = [place for place in position.places if place[0] % self.world_size == self.rank]
        # Only rank 0 reports the skips of the run so far.
        skipped = position.skipped if self.rank == 0 else {}
        return attrs.evolve(position, num_readers=order.num_readers, places=places, skipped=skipped, data="")

    def _whole_epoch(self, start: _Progress) -> Iterator[tuple[_Progress, BatchType]]:
        size, waiting = self.spec.batch_size, list[BatchType]()
        progress = attrs.evolve(start, num_since=0)
        for position, chunks in self._steps(self._taken_up(start.position), epoch=start.epoch):
            batch = _whole(chunks)
            if batch is not None and len(batch) < size:
                # If samples are missing, join incomplete batches into complete ones.
                batch, waiting = _first_rows([*waiting, batch], size)
            if batch is None:
                continue
            progress = attrs.evolve(progress, num_since=progress.num_since + 1)
            if not waiting:
                progress = attrs.evolve(progress, num_since=0, position=position)
            yield progress, batch
        if waiting and not self.spec.drop_last:
            yield attrs.evolve(progress, num_since=progress.num_since + 1), join_batches(waiting)
        if self.report.num_read == 0 and not start.position.places:
            raise ValueError(self._nothing())

    def _steps(
        self, position: StreamPosition, *, epoch: int | None = None
    ) -> Iterator[tuple[StreamPosition, list[Chunk[BatchType]]]]:
        """Yield the chunks of all workers step by step, with the position after each step, and count the samples.

        If a worker dies, the pipeline restarts all workers from the last position.
        """
        self.report, num_lost = SkipReport(), 0
        num_workers = max(1, min(self.spec.num_workers, self._order.num_readers // self.world_size))
        while True:
            try:
                with self._chunks(position, epoch, num_workers) as chunks:
                    for first in chunks:
                        step = [first, *islice(chunks, num_workers - 1)]
                        for chunk in step:
                            self.report.extend(chunk.skips)
                            self.report.num_read += len(chunk.numbers)
                            self.report.num_unwanted += chunk.num_unwanted
                        places = [place for chunk in step for place in chunk.places]
                        position = position.moved(places, [skip.reason for chunk in step for skip in chunk.skips])
                        num_lost = 0
                        yield position, step
            except LostWorkerError as lost:  # noqa: PERF203 - a loop of few iterations
                num_lost += 1
                if num_lost == _MOST_LOST:
                    raise LostProcessError(
                        f"{lost}; {_MOST_LOST} workers in a row have died at the same step: the cause may be "
                        "a sample or too little memory. Reduce num_workers or batch_size, or leave out the "
                        "shard"
                    ) from None
                self.num_lost += 1
                logger.warning("%s; a new worker continues from the same sample", lost)
            else:
                return

    def _chunks(
        self, start: StreamPosition, epoch: int | None, num_workers: int
    ) -> AbstractContextManager[Iterator[Chunk[BatchType]]]:
        """Return a context manager for the chunks after a position, made by workers or by this process."""
        spec, maker = self.spec, self._maker()
        reading = SampleReading(
            shards=self._reader,
            order=self._order,
            seed=spec.seed,
            shuffle_buffer=spec.shuffle_buffer if spec.shuffle else 0,
            limits=maker.limits,
        )
        chunks = Chunks(
            reading=reading,
            maker=maker,
            keep=self._keep,
            batch_size=self._batch_size,
            world=(self.rank, self.world_size),
            start=start,
            epoch=epoch,
            stores=spec.stores,
            current_shards=torch.full((num_workers,), -1, dtype=torch.int64),
        )
        if not spec.num_workers:
            return nullcontext(chunks.chunks(0, 1))
        try:
            chunks.current_shards.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise_machine_fault(error, "sharing memory with the workers that load data")
            raise
        seed = derived_seed(spec.seed, "process", self.rank)
        return WorkerPool(chunks, num_workers=num_workers, seconds=spec.worker_seconds, seed=seed)

    def _batches_per_epoch(self, num_samples: int) -> int:
        drop_last = self.spec.drop_last or self.spec.sampling != "epoch"
        full, rest = divmod(num_samples, self._batch_size)
        return full + (rest > 0 and not drop_last)

    def _nothing(self) -> str:
        if self.report.num_read:
            return f"no more samples can be read from {len(self.shards)} shards: {self.report}"
        return f"no sample of {len(self.shards)} shards can be used: {self.report}"


def _whole(chunks: Sequence[Chunk[BatchType]]) -> BatchType | None:
    """Join the chunks of all workers into a batch with the samples in order."""
    parts = [(chunk.batch, chunk.numbers) for chunk in chunks if chunk.batch is not None]
    return interleaved([batch for batch, _ in parts], [numbers for _, numbers in parts]) if parts else None


def _first_rows(waiting: list[BatchType], size: int) -> tuple[BatchType | None, list[BatchType]]:
    """Join incomplete batches; return the first complete batch, or None, and the remaining incomplete batches."""
    if sum(map(len, waiting)) < size:
        return None, waiting
    joined = join_batches(waiting)
    return joined.rows(0, size), [joined.rows(size, len(joined))] if len(joined) > size else []

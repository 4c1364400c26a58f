"""From shards to named batches, in one process or several: what every pipeline shares.

What an epoch makes of a sample depends on the seed, the epoch and the sample's key alone, and which samples make a
batch on the spec and the batch's number: batches are the same to the bit whatever the number of workers, and those of
all processes together hold the same samples whatever the number of processes.
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
    EndlessOrder,
    EpochOrder,
    Order,
    Sampling,
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

# Steps behind the last one whose position is known: whoever takes batches in advance asks for an earlier one.
_KNOWN_STEPS = 4
# Workers that die of the same step, one after another, after which the stream ends.
_MOST_LOST = 3
# Of what was left out and is not taken by anyone; all are counted.
_MOST_NAMED = 1_000_000


# Without slots: of two bases that a class has, one alone may have its own.
@attrs.frozen(kw_only=True, field_transformer=strict, slots=False)
class PipelineSpec(ExampleSpec):
    """The choices that all pipelines share, beside those of `ExampleSpec`.

    Args:
        shards: paths or brace patterns of the shards.
        batch_size: samples of a batch: in a training run that of all processes together, which divide it among them;
            the pipeline by itself gives every process batches of so many.
        sampling: `epoch`, every sample once an epoch; or `endless`, which need not know how many samples there are:
            shards in random order, again and again, and an epoch is as many batches as `num_samples` would fill; or
            `with_replacement`, the same but that every shard is drawn among all, as the released scripts do.
        weights: share of each of `shards` of every batch, with another sampling than `epoch`; none takes all shards
            alike.
        epochs: number of epochs that iterating yields.
        shuffle: whether to shuffle the shards and, within a buffer, the samples; without, and with one reader, they
            come as they are stored.
        num_readers: shards that are read at once, all processes together; every batch has the same share of each. The
            number of processes must divide it. Small data has fewer, the largest divisor for which there are samples
            and a quarter as many shards, or otherwise as many shards.
        shuffle_buffer: number of samples, encoded, of every reader's buffer. The order of shards is uniform; that of
            the samples within a shard is not: the buffer takes in two samples for each that leaves it, so none leaves
            before half of its place, and of a shard that fits into the buffer, the first sample comes after 12 % of
            the others in the mean and the last after 70 %. Mix samples when you write shards.
        num_workers: processes that read, decode and augment, at most one for every reader; 0 for none beside the own
            one.
        uids: a list of the samples that are used, with another sampling than `epoch`; none uses all. See
            `mobileclip.data.loading.uids.UidList`.
        cache: folder of copies of remote shards for the next time they are read; none keeps none.
        cache_bytes: cache bytes of all copies together; the oldest make room.
        worker_seconds: for which one of them is waited for.
        stores: how long stores are waited for. Specs that differ in these, the cache and the number of
            workers alone are equal.
        drop_last: whether to leave out the last samples of an epoch that fill no batch; there are none otherwise.
        num_samples: number of samples in all shards; None to count them where that is needed, except for `len`.

    Raises:
        ValueError: as `ExampleSpec` does, or if there are weights, and not one for each of `shards`, or weights or uids
            with sampling `epoch`.
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
                "an epoch of the samples in `uids` has a length that nobody knows; choose sampling `endless`"
            )
        if self.weights and (self.sampling == "epoch" or len(self.weights) != len(self.shards)):
            raise ValueError(
                f"weights are of sources in sampling `endless`, one for each of shards; got {len(self.weights)} for "
                f"{len(self.shards)} in `{self.sampling}`"
            )

    @property
    def file_cache(self) -> FileCache | None:
        """Where copies of remote shards are kept."""
        return None if self.cache is None else FileCache(path=self.cache, max_bytes=self.cache_bytes)


@attrs.frozen(kw_only=True)
class _Progress:
    """How far iterating has come.

    Args:
        epoch: that it is in.
        first_epoch: first epoch of those that it goes through.
        position: within the epoch, behind a batch that left no samples waiting for the next one.
        num_since: batches since.
    """

    epoch: int = 0
    first_epoch: int = 0
    position: StreamPosition = StreamPosition()
    num_since: int = 0


class Pipeline(IterableDataset[BatchType], ABC):
    """An iterable of named batches; every epoch sees every usable sample of the shards once.

    To torch it is a data set of whole batches, with workers of its own: `DataLoader(pipeline, batch_size=None)`.

    In a distributed run every process has the same share of every batch; `mobileclip.processes` tells its rank. See
    `mobileclip.data.loading.order` for who reads what.

    Args:
        spec: the choices.
        reader: reader of the shards.
        keep: from key and members of a sample to whether it is used, with another sampling than `epoch`; None for all
            those that the spec's `uids` have. Workers get it pickled where they are not forked.

    Raises:
        ValueError: if there is such a choice in an epoch, whose length nobody would know.
    """

    def __init__(self, spec: PipelineSpec, *, reader: ShardReader, keep: Keep | None = None) -> None:
        if keep is not None and spec.sampling == "epoch":
            raise ValueError(
                "an epoch of the samples that `keep` chooses has a length that nobody knows; choose `endless`"
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
        """What the current or last epoch, or stream, read and skipped, in this process."""
        self.num_lost = 0
        """How many workers have died, in whose place others went on."""
        # Where this process stands behind the last batches; what its data is, is known when somebody asks.
        self._known: deque[StreamPosition] = deque(maxlen=_KNOWN_STEPS)
        # Number of the batch that it was left out for, of what nobody has taken yet.
        self._left_out: deque[tuple[int, Skip]] = deque(maxlen=_MOST_NAMED)

    @abstractmethod
    def _maker(self) -> Maker[Any, Any, BatchType]:
        """Return what makes batches of samples."""

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """The number of samples of every shard, as it is said or counted."""
        with use_limits(self.spec.stores):
            return self._reader.sizes(self.spec.sample_limits)

    @cached_property
    def _order(self) -> Order:
        """Which reader reads what.

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
            order = EndlessOrder(sources=self._reader.sources, weights=spec.weights, replacement=replacement, **choices)
        if order.num_readers % self.world_size:
            raise ValueError(
                f"{order.num_readers} readers cannot be divided among {self.world_size} processes: there are as many "
                "as divide num_readers and the data has samples, or shards in endless sampling, for. Choose "
                f"num_readers as a multiple of {self.world_size}, or split the shards up"
            )
        return order

    @cached_property
    def _digest(self) -> str:
        return data_digest(self.shards, self._sizes if self.spec.sampling == "epoch" else ())

    def __len__(self) -> int:
        """Return the number of batches that iterating yields in this process, if no sample is skipped.

        Raises:
            TypeError: if `num_samples` is not known.
        """
        if self.spec.num_samples is None:
            raise TypeError("the number of batches is unknown; give num_samples, count_samples(shards) finds it")
        return self.spec.epochs * self._batches_per_epoch(self.spec.num_samples)

    def __iter__(self) -> Iterator[BatchType]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"each of the DataLoader's {worker.num_workers} workers would read everything; give the pipeline "
                "num_workers, and the DataLoader none"
            )
        fresh = _Progress(epoch=self._first_epoch, first_epoch=self._first_epoch)
        self._progress, self._resumed = self._resumed or fresh, None
        return self._all_epochs(self._progress)

    def set_epoch(self, epoch: int) -> None:
        """Have iterating begin with an epoch; loaders that count epochs call this.

        Args:
            epoch: its number, from 0.
        """
        self._first_epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where iterating stands, for `load_state_dict`; of this process alone."""
        position = attrs.evolve(self._progress.position, data=self._digest if self._progress.position.places else "")
        return {**attrs.asdict(self._progress, recurse=False), "position": to_json(position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on from a state.

        Args:
            state: of `state_dict`.
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
        """Yield the batches of the rest of an epoch, and where iterating stands behind each."""
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
        """Yield the batches of one epoch: every usable sample once, or as many as that would be, of an endless stream.

        Args:
            epoch: its number, from 0; decides the order, the augmentations and the captions.

        Raises:
            ValueError: if not one sample of the shards can be used, or nothing says how many there are.
        """
        return (batch for _, batch in self._followed(_Progress(epoch=epoch)))

    def stream(self, position: StreamPosition | None = None) -> Iterator[BatchType]:
        """Yield batches without end, from any of them on: a run that resumes sees the same ones.

        All are complete, in every process: where samples are skipped, the next ones take their place. With sampling
        `epoch`, the samples that fill no batch at the end of an epoch are left out. A resumed stream opens one shard a
        reader and decodes nothing of what came before, whatever the number of workers and processes.

        Args:
            position: position of an earlier stream, of this process or of all; None for the start.

        Raises:
            ValueError: if there are fewer samples than one batch needs, none can be used, or the position is of another
                order.
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
            num_batches: that were consumed, those before the stream was resumed included.

        Raises:
            ValueError: if the stream has not come so far, or went on long ago.
        """
        if num_batches == 0:
            return StreamPosition()
        for known in self._known:
            if known.first_batch == num_batches:
                return attrs.evolve(known, data=self._digest)
        raise ValueError(
            f"the stream does not know where it stood after batch {num_batches}, only after "
            f"{[known.first_batch for known in self._known]}; ask for its position when that many batches "
            "were just consumed"
        )

    def take_skips(self, num_batches: int) -> list[Skip]:
        """Return this process's skips up to a number of batches of the current stream, each of them once.

        Args:
            num_batches: that were consumed, those before the stream was resumed included.
        """
        skips = []
        while self._left_out and self._left_out[0][0] <= num_batches:
            skips.append(self._left_out.popleft()[1])
        return skips

    def _taken_up(self, position: StreamPosition) -> StreamPosition:
        """Return this process's part of the position to go on from.

        Raises:
            ValueError: if it is of other data, or of another order.
        """
        order = self._order
        if position.data and position.data != self._digest:
            raise ValueError(
                f"the position is one in other data: the names of the {len(self.shards)} shards, or their sizes, "
                "were others. Give the shards as they were, or start another run from its weights"
            )
        if position.num_readers not in (0, order.num_readers):
            raise ValueError(
                f"the position is of {position.num_readers} readers, and the order has {order.num_readers}: "
                "num_readers, the shards or their sizes are others than they were"
            )
        first = position.first_batch
        if first and not position.places and next(order.steps(first, self._batch_size))[1].start:
            raise ValueError(
                f"the position behind batch {position.first_batch} does not say where the readers stand; take it from "
                "the checkpoint, or from the stream that came so far"
            )
        places = [place for place in position.places if place[0] % self.world_size == self.rank]
        # Of the run so far, the first process tells.
        skipped = position.skipped if self.rank == 0 else {}
        return attrs.evolve(position, num_readers=order.num_readers, places=places, skipped=skipped, data="")

    def _whole_epoch(self, start: _Progress) -> Iterator[tuple[_Progress, BatchType]]:
        size, waiting = self.spec.batch_size, list[BatchType]()
        progress = attrs.evolve(start, num_since=0)
        for position, chunks in self._steps(self._taken_up(start.position), epoch=start.epoch):
            batch = _whole(chunks)
            if batch is not None and len(batch) < size:
                # Where samples are missing, what is left makes complete batches together.
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
        """Yield the chunks of all workers, step by step, and the position behind them; count what they read.

        Where a worker dies, all are started again from the last position.
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
            except LostWorkerError as lost:  # noqa: PERF203 - a loop of very few
                num_lost += 1
                if num_lost == _MOST_LOST:
                    raise LostProcessError(
                        f"{lost}; {_MOST_LOST} have died there, one after another: a sample may be what they die of, "
                        "or too little memory. Choose fewer num_workers or a smaller batch_size, or leave that shard "
                        "out"
                    ) from None
                self.num_lost += 1
                logger.warning("%s; a new worker continues from the same sample", lost)
            else:
                return

    def _chunks(
        self, start: StreamPosition, epoch: int | None, num_workers: int
    ) -> AbstractContextManager[Iterator[Chunk[BatchType]]]:
        """Return what enters into the chunks from a position on, made by workers or here."""
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
            at=torch.full((num_workers,), -1, dtype=torch.int64),
        )
        if not spec.num_workers:
            return nullcontext(chunks.chunks(0, 1))
        try:
            chunks.at.share_memory_()  # type: ignore[no-untyped-call]
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
        return f"not one sample of {len(self.shards)} shards can be used: {self.report}"


def _whole(chunks: Sequence[Chunk[BatchType]]) -> BatchType | None:
    """Return the batch that the chunks of all workers make, its samples in their order."""
    parts = [(chunk.batch, chunk.numbers) for chunk in chunks if chunk.batch is not None]
    return interleaved([batch for batch, _ in parts], [numbers for _, numbers in parts]) if parts else None


def _first_rows(waiting: list[BatchType], size: int) -> tuple[BatchType | None, list[BatchType]]:
    """Return the first complete batch of incomplete ones, where they suffice, and what is left."""
    if sum(map(len, waiting)) < size:
        return None, waiting
    joined = join_batches(waiting)
    return joined.rows(0, size), [joined.rows(size, len(joined))] if len(joined) > size else []

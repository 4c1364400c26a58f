"""From shards to named batches, in one process or several: what every pipeline shares.

What an epoch makes of a sample depends on the seed, the epoch and the sample's key alone, and which samples make a
batch on the spec and the batch's number: batches are the same to the bit whatever the number of workers, and those of
all processes together hold the same samples whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any, Generic, TypeVar

import attrs
import torch
from torch.utils.data import DataLoader

from mobileclip.data.loading.batch import BatchType, interleaved, join_batches
from mobileclip.data.loading.dataset import ShardDataset
from mobileclip.data.loading.keeping import Keep, UidList
from mobileclip.data.loading.order import EndlessOrder, EpochOrder, Order, Place
from mobileclip.data.loading.position import StreamPosition
from mobileclip.data.loading.readers import Chunk, Maker
from mobileclip.data.loading.reading import ShardReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.processes import this_process
from mobileclip.storage import printable, use_limits
from mobileclip.terminal.interruption import serve_loader

T = TypeVar("T")

# Handing over takes milliseconds.
_HANDOVER_SECONDS = 1.0
# Steps behind the last one whose position is known: whoever takes batches in advance asks for an earlier one.
_KNOWN_STEPS = 4
_STREAM = -1
# Of what was left out and is not taken by anyone; all are counted.
_MOST_NAMED = 1_000_000


class Pipeline(ABC, Generic[BatchType]):
    """An iterable of named batches; every epoch sees every usable sample of the shards once.

    In a distributed run every process has the same share of every batch; `mobileclip.processes` tells its rank. See
    `mobileclip.data.loading.order` for who reads what.

    Args:
        spec: the choices.
        reader: of the shards.
        keep: from key and members of a sample to whether it is used, with sampling `endless`; None for all those that
            the spec's `uids` have. Workers get it pickled where they are not forked.

    Raises:
        ValueError: if there is such a choice in an epoch, whose length nobody would know.
    """

    def __init__(self, spec: PipelineSpec, *, reader: ShardReader, keep: Keep | None = None) -> None:
        if keep is not None and spec.sampling != "endless":
            raise ValueError(
                "an epoch of the samples that `keep` chooses has a length that nobody knows; choose `endless`"
            )
        self.spec = spec
        self._keep = UidList(spec.uids) if keep is None and spec.uids is not None else keep
        self.shards = reader.names
        self._reader = reader
        process = this_process()
        self.rank, self.world_size = process.rank, process.size
        self.report = SkipReport()
        """What the current or last epoch, or stream, read and skipped, in this process."""
        self._dataset: ShardDataset[BatchType] | None = None
        self._loader: DataLoader[Chunk[BatchType]] | None = None
        self._received: Counter[int] = Counter()
        # Number of batches, where this process's readers stand behind them, none where an epoch begins, and what was
        # left out so far.
        self._known: deque[tuple[int, dict[int, Place], Counter[str]]] = deque(maxlen=_KNOWN_STEPS)
        # Number of the batch that it was left out for, of what nobody has taken yet.
        self._left_out: deque[tuple[int, Skip]] = deque(maxlen=_MOST_NAMED)

    @abstractmethod
    def _maker(self) -> Maker[Any, Any, BatchType]:
        """Return what makes batches of samples."""

    def __len__(self) -> int:
        """Return the number of batches that iterating yields in this process, if no sample is skipped.

        Raises:
            TypeError: if `num_samples` is not known.
        """
        if self.spec.num_samples is None:
            raise TypeError("the number of batches is unknown; give num_samples, count_samples(shards) finds it")
        return self.spec.epochs * self._batches_per_epoch(self.spec.num_samples)

    def __iter__(self) -> Iterator[BatchType]:
        for epoch in range(self.spec.epochs):
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[BatchType]:
        """Yield the batches of one epoch: every usable sample once, or as many as that would be, of an endless stream.

        Args:
            epoch: its number, from 0; decides the order, the augmentations and the captions.

        Raises:
            ValueError: if not one sample of the shards can be used, or nothing says how many there are.
        """
        if isinstance(self._order, EndlessOrder):
            places = tuple((reader, *attrs.astuple(place)) for reader, place in enumerate(self._order.start(epoch)))
            start = StreamPosition(num_readers=self._order.num_readers, places=places)
            num_samples = sum(self._sizes) if self.spec.num_samples is None else self.spec.num_samples
            return islice(self.stream(start), self._batches_per_epoch(num_samples))
        return self._whole_epoch(epoch)

    def stream(self, position: StreamPosition | None = None) -> Iterator[BatchType]:
        """Yield batches without end, from any of them on: a run that resumes sees the same ones.

        All are complete, in every process: where samples are skipped, the next ones take their place. With sampling
        `epoch`, the samples that fill no batch at the end of an epoch are left out. A resumed stream opens one shard a
        reader and decodes nothing of what came before, whatever the number of workers and processes.

        Args:
            position: of an earlier stream, of this process or of all; None for the start.

        Raises:
            ValueError: if there are fewer samples than one batch needs, none can be used, or the position is of another
                order.
        """
        position = StreamPosition() if position is None else position
        if position.num_readers not in (0, self._order.num_readers):
            raise ValueError(
                f"the position is of {position.num_readers} readers, and the order has {self._order.num_readers}: "
                "num_readers, the shards or their sizes are others than they were"
            )
        if not position.places and not self._is_at_start(position.first_batch):
            raise ValueError(
                f"the position behind batch {position.first_batch} does not say where the readers stand; take it from "
                "the checkpoint, or from the stream that came so far"
            )
        self._loader = None  # workers know from their start where the stream goes on
        places = {reader: Place(*place) for reader, *place in position.places if reader % self.world_size == self.rank}
        self._left_out.clear()
        self._known.clear()
        # Of the run so far, the first process tells.
        self._known.append((position.first_batch, places, Counter(position.skipped if self.rank == 0 else {})))
        for chunks in self._steps(_STREAM, position):
            self._note(chunks)
            batch = _whole(chunks)
            if batch is None or any(chunk.gave_up for chunk in chunks):
                raise ValueError(self._nothing())
            yield batch

    def position(self, num_batches: int) -> StreamPosition:
        """Return where the current stream stands after a number of its batches, counted from the very first one.

        Args:
            num_batches: that were consumed, those before the stream was resumed included.

        Raises:
            ValueError: if the stream has not come so far, or went on long ago.
        """
        if num_batches == 0:
            return StreamPosition()
        for number, places, skipped in self._known:
            if number == num_batches:
                return StreamPosition(
                    first_batch=num_batches,
                    num_readers=self._order.num_readers if places else 0,
                    places=tuple((reader, *attrs.astuple(place)) for reader, place in places.items()),
                    skipped=skipped,
                )
        raise ValueError(
            f"the stream does not know where it stood after batch {num_batches}, only after "
            f"{[number for number, *_ in self._known]}; ask for its position when that many batches "
            "were just consumed"
        )

    def take_skips(self, num_batches: int) -> list[Skip]:
        """Return what this process left out for the current stream's batches up to a number, since it was last asked.

        Args:
            num_batches: that were consumed, those before the stream was resumed included.
        """
        skips = []
        while self._left_out and self._left_out[0][0] <= num_batches:
            skips.append(self._left_out.popleft()[1])
        return skips

    def _note(self, chunks: Sequence[Chunk[BatchType]]) -> None:
        """Note where the stream stands behind one batch more, and what was left out for it."""
        number, places, skipped = self._known[-1]
        number += 1
        skips = [skip for chunk in chunks for skip in chunk.skips]
        self._left_out.extend((number, skip) for skip in skips)
        moved = {reader: Place(*place) for chunk in chunks for reader, *place in chunk.places}
        places = {} if self._is_at_start(number) else places | moved
        self._known.append((number, places, skipped + Counter(skip.reason for skip in skips)))

    def _whole_epoch(self, epoch: int) -> Iterator[BatchType]:
        size = self.spec.batch_size
        waiting: list[BatchType] = []
        for chunks in self._steps(epoch, StreamPosition()):
            batch = _whole(chunks)
            if batch is not None and len(batch) < size:
                # Where samples are missing, what is left makes complete batches together.
                batch, waiting = _first_rows([*waiting, batch], size)
            if batch is not None:
                yield batch
        if waiting and not self.spec.drop_last:
            yield join_batches(waiting)
        if self.report.num_read == 0:
            raise ValueError(self._nothing())

    def _steps(self, epoch: int, start: StreamPosition) -> Iterator[list[Chunk[BatchType]]]:
        """Yield the chunks of all workers, step by step, and count what they read and skipped."""
        self.report = SkipReport()
        chunks = self._chunks(epoch, start)
        for first in chunks:
            step = [first, *islice(chunks, self._num_workers - 1)]
            for chunk in step:
                self.report.extend(chunk.skips)
                self.report.num_read += len(chunk.numbers)
                self.report.num_unwanted += chunk.num_unwanted
            yield step

    def _is_at_start(self, num_batches: int) -> bool:
        """Return whether so many batches end an epoch, or none was made yet."""
        _, numbers = self._order.step(num_batches, self._batch_size)
        return numbers.start == 0

    def _batches_per_epoch(self, num_samples: int) -> int:
        drop_last = self.spec.drop_last or self.spec.sampling == "endless"
        full, rest = divmod(num_samples, self._batch_size)
        return full + (rest > 0 and not drop_last)

    def _nothing(self) -> str:
        if self.report.num_read:
            return f"nothing more can be read of {len(self.shards)} shards: {self.report}"
        return f"not one sample of {len(self.shards)} shards can be used: {self.report}"

    @property
    def _batch_size(self) -> int:
        """Samples of a batch, of all processes together."""
        return self.spec.batch_size * self.world_size

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        with use_limits(self.spec.stores):
            return self._reader.sizes(self.spec.sample_limits)

    @cached_property
    def _order(self) -> Order:
        spec = self.spec
        choices: dict[str, Any] = {"most_readers": spec.num_readers, "seed": spec.seed, "shuffle": spec.shuffle}
        order: Order
        if spec.sampling == "epoch":
            order = EpochOrder(names=self.shards, sizes=self._sizes, **choices)
        else:
            order = EndlessOrder(sources=self._reader.sources, weights=spec.weights, **choices)
        order.check_processes(self.world_size)
        return order

    @property
    def _num_workers(self) -> int:
        """How many share the work: as many as have a reader, at least one."""
        return max(1, min(self.spec.num_workers, self._order.num_readers // self.world_size))

    def _chunks(self, epoch: int, start: StreamPosition) -> Iterator[Chunk[BatchType]]:
        if self._loader is None:
            num_workers = self._num_workers if self.spec.num_workers else 0
            self._dataset = ShardDataset(
                self.spec,
                shards=self._reader,
                order=self._order,
                maker=self._maker(),
                keep=self._keep,
                world=(self.rank, self.world_size),
                start=start,
                num_workers=num_workers,
            )
            self._loader = DataLoader(
                self._dataset,
                batch_size=None,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                timeout=self.spec.worker_seconds if num_workers else 0,
                collate_fn=_as_it_is,
                worker_init_fn=serve_loader,
                # Its own: starting an epoch must not draw from the generator that the model trains with.
                generator=torch.Generator(),
            )
        assert self._dataset is not None, "made together with the loader"
        self._dataset.epoch.fill_(epoch)
        try:
            yield from self._in_time(self._loader, self._dataset)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
        else:
            return
        # Not inside of the handler: the error would hold the loader, whose end ends the workers.
        self._end_workers(self._dataset.processes())
        awaited = printable(self._dataset.awaited(self._received), limit=1000)
        raise TimeoutError(
            f"no batch came for {self.spec.worker_seconds:g} s from {awaited}: one may be stopped, or its disk or "
            "decoder stuck. See to it and start again, or give it more worker_seconds"
        )

    def _in_time(
        self, loader: DataLoader[Chunk[BatchType]], dataset: ShardDataset[BatchType]
    ) -> Iterator[Chunk[BatchType]]:
        """Yield the chunks; PyTorch's own timeout does not hold while a worker hands over a tensor."""
        late = threading.Event()

        def wake() -> None:
            late.set()
            _go_on(dataset.processes())

        chunks = iter(loader)
        self._received = Counter()
        while True:
            alarm = threading.Timer(self.spec.worker_seconds + _HANDOVER_SECONDS, wake)
            alarm.daemon = True
            if loader.num_workers:
                alarm.start()
            try:
                chunk = next(chunks, None)
            finally:
                alarm.cancel()
            if late.is_set():
                raise RuntimeError("timed out")
            if chunk is None:
                return
            self._received[chunk.worker] += 1
            yield chunk

    def _end_workers(self, processes: Sequence[int]) -> None:
        _go_on(processes)  # one that was stopped would not hear that it is to end
        self._loader = None
        for child in multiprocessing.active_children():
            if child.pid in processes:
                child.kill()
                child.join()


def _go_on(processes: Sequence[int]) -> None:
    """Let processes that were stopped go on."""
    if sys.platform != "win32":
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


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


def _as_it_is(chunk: T) -> T:
    return chunk

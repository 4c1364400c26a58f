"""From shards to named batches, in one process or several: what every pipeline shares.

What an epoch makes of a sample depends on the seed, the epoch and the sample's key alone. So the samples of an epoch
are the same to the bit whatever the number of workers; only their order and grouping differ.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from mobileclip.data.loading.batch import BatchType, join_batches
from mobileclip.data.loading.dataset import Chunk, Maker, ShardDataset
from mobileclip.data.loading.order import ShardReader
from mobileclip.data.loading.position import StreamPosition
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.skips import SkipReport
from mobileclip.processes import this_process
from mobileclip.storage import printable
from mobileclip.terminal.interruption import serve_loader

T = TypeVar("T")

# Handing over takes milliseconds.
_HANDOVER_SECONDS = 1.0


class Pipeline(ABC, Generic[BatchType]):
    """An iterable of named batches; every epoch sees every usable sample of the shards once, unless resampled.

    In a distributed run the shards are dealt out to the processes, whose ranks
    `mobileclip.processes` tells, and then to the workers. `epoch` gives each process what its shards hold, `stream` the
    same number of batches whatever they hold.

    Args:
        spec: the choices.
        reader: of the shards.

    Raises:
        ValueError: if there are fewer shards than processes.
    """

    def __init__(self, spec: PipelineSpec, *, reader: ShardReader) -> None:
        self.spec = spec
        self.shards = reader.names
        self._reader = reader
        self.rank, self.world_size = _process()
        if spec.sampling == "epoch" and len(self.shards) < self.world_size:
            raise ValueError(
                f"{len(self.shards)} shards cannot be dealt out to {self.world_size} processes; split them up"
            )
        self.report = SkipReport()
        """What the current or last epoch read and skipped, in this process; of what a resumed stream passed over,
        only the number."""
        self._num_samples = spec.num_samples
        self._dataset: ShardDataset[BatchType] | None = None
        self._loader: DataLoader[Chunk[BatchType]] | None = None
        self._received: Counter[int] = Counter()
        # Of the last two epochs: whoever takes batches in advance may still ask for the one before.
        self._skipped: dict[int, dict[tuple[str, str], None]] = {}

    @abstractmethod
    def _maker(self) -> Maker[Any, Any, BatchType]:
        """Return what makes batches of samples."""

    def __len__(self) -> int:
        """Return the number of batches that iterating yields in this process, if no sample is skipped.

        With several processes it assumes shards of equal size.

        Raises:
            TypeError: if `num_samples` is not known.
        """
        if self.spec.num_samples is None:
            raise TypeError("the number of batches is unknown; give num_samples, count_samples(shards) finds it")
        drop_last = self.spec.drop_last or self.spec.sampling == "resampled"
        return self.spec.epochs * self._batches_per_epoch(drop_last=drop_last)

    def __iter__(self) -> Iterator[BatchType]:
        for epoch in range(self.spec.epochs):
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[BatchType]:
        """Yield the batches of one epoch: every usable sample once, or as many as that would be, resampled.

        Args:
            epoch: its number, from 0; decides the order, the augmentations and the captions.

        Raises:
            ValueError: if not one sample of the shards can be used.
        """
        batches = self._pass(epoch, passed_over=0)
        if self.spec.sampling == "resampled":
            batches = islice(batches, self._batches_per_epoch(drop_last=True))
        yield from (batch for batch in batches if batch is not None)

    def stream(self, position: StreamPosition | None = None) -> Iterator[BatchType]:
        """Yield batches without end, epoch after epoch, from any of them on: a run that resumes sees the same ones.

        Every epoch has the same number of batches, in every process: one that lost samples or has smaller shards
        repeats its first ones. Incomplete batches are left out. Resumed with as many workers, the batches are the same
        to the bit; those of the current epoch that came before are passed over: read, but not decoded.

        Args:
            position: of an earlier stream of this process; None for the start.

        Raises:
            ValueError: if there are fewer samples than one batch needs.
        """
        position = StreamPosition() if position is None else position
        per_epoch = self._batches_per_epoch(drop_last=True)
        if per_epoch == 0:
            raise ValueError(f"{self._count()} samples do not fill a batch of {self._batch}")
        epoch, done = divmod(position.first_batch, per_epoch)
        self._loader = None  # workers know from their start what was skipped before
        self._skipped = {epoch: dict.fromkeys(position.skipped if done else ())}
        while True:
            yield from islice(self._filled_epoch(epoch, done), per_epoch - done)
            epoch, done = epoch + 1, 0

    def position(self, num_batches: int) -> StreamPosition:
        """Return where the current stream stands after a number of its batches, counted from the very first one.

        Args:
            num_batches: that were consumed, those before the stream was resumed included.

        Raises:
            ValueError: if the stream is elsewhere: it has not come so far, or left that epoch long ago.
        """
        if num_batches == 0:
            return StreamPosition()
        epoch, done = divmod(num_batches, self._batches_per_epoch(drop_last=True))
        if done == 0:
            return StreamPosition(first_batch=num_batches)
        if epoch not in self._skipped:
            raise ValueError(
                f"batch {num_batches} is of epoch {epoch}, but the stream knows of epochs {sorted(self._skipped)}; ask "
                "for its position when that many batches were just consumed"
            )
        return StreamPosition(first_batch=num_batches, skipped=tuple(self._skipped[epoch]))

    def _filled_epoch(self, epoch: int, done: int) -> Iterator[BatchType]:
        """Yield the complete batches of an epoch over and over again, but for the first `done`."""
        while True:
            num_full = 0
            for batch in self._pass(epoch, passed_over=done):
                if batch is None or len(batch) == self.spec.batch_size:
                    num_full += 1
                if batch is not None and len(batch) == self.spec.batch_size:
                    yield batch
            if num_full == 0:
                raise ValueError(f"epoch {epoch} has no complete batch of {self._batch} samples: {self.report}")
            done = max(0, done - num_full)

    def _pass(self, epoch: int, *, passed_over: int) -> Iterator[BatchType | None]:
        """Yield the batches of one pass over the samples; None for each of the first `passed_over`."""
        self.report = SkipReport()
        skipped = self._skipped.setdefault(epoch, {})
        self._skipped = {number: self._skipped[number] for number in sorted(self._skipped)[-2:]}
        size = self.spec.batch_size
        num_batches = 0
        waiting: list[BatchType] = []
        for chunk in self._chunks(epoch, passed_over):
            self.report.extend(chunk.skips)
            self.report.num_read += chunk.num_passed + (0 if chunk.batch is None else len(chunk.batch))
            skipped.update(dict.fromkeys(chunk.places))
            complete = chunk.batch
            if chunk.batch is None or len(chunk.batch) < size:
                # Workers end with incomplete batches, which together make complete ones.
                waiting += [] if chunk.batch is None else [chunk.batch]
                complete, waiting = _first_rows(waiting, size)
            if complete is not None or chunk.num_passed:
                num_batches += 1
                yield complete if num_batches > passed_over else None
        if waiting and not self.spec.drop_last:
            yield join_batches(waiting)
        if self.report.num_read == 0:
            raise ValueError(f"not one sample of {len(self.shards)} shards can be used: {self.report}")

    def _batches_per_epoch(self, *, drop_last: bool) -> int:
        full, rest = divmod(self._count() // self.world_size, self.spec.batch_size)
        return full + (rest > 0 and not drop_last)

    @property
    def _batch(self) -> str:
        """Size of a batch, of all processes, as a person has given it."""
        size = self.spec.batch_size
        if self.world_size == 1:
            return f"{size}"
        return f"{size * self.world_size}, {size} in each of {self.world_size} processes,"

    def _count(self) -> int:
        if self._num_samples is None:
            self._num_samples = self._reader.count(self.spec.sample_limits)
        return self._num_samples

    def _chunks(self, epoch: int, passed_over: int) -> Iterator[Chunk[BatchType]]:
        if self._loader is None:
            num_workers = self.spec.num_workers
            if self.spec.sampling == "epoch":
                num_workers = min(num_workers, len(self.shards[self.rank :: self.world_size]))
            self._dataset = ShardDataset(
                self.spec,
                reader=self._reader,
                maker=self._maker(),
                world=(self.rank, self.world_size),
                known=(epoch, frozenset(self._skipped[epoch])),
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
        self._dataset.request.copy_(torch.tensor([epoch, passed_over]))
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


def _first_rows(waiting: list[BatchType], size: int) -> tuple[BatchType | None, list[BatchType]]:
    """Return the first complete batch of incomplete ones, where they suffice, and what is left."""
    if sum(map(len, waiting)) < size:
        return None, waiting
    joined = join_batches(waiting)
    return joined.rows(0, size), [joined.rows(size, len(joined))] if len(joined) > size else []


def _as_it_is(chunk: T) -> T:
    return chunk


def _process() -> tuple[int, int]:
    """Return the rank of this process and the number of processes of the run."""
    place = this_process()
    return place.rank, place.size

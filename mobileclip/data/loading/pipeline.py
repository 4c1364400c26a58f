"""From shards to named batches, in one process or several: what every pipeline shares.

What an epoch makes of a sample depends on the seed, the epoch and the sample's key alone, and which samples make a
batch on the spec and the batch's number: batches are the same to the bit whatever the number of workers, and those of
all processes together hold the same samples whatever the number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, cast

import attrs
from torch.utils.data import IterableDataset, get_worker_info

from mobileclip.data.loading.batch import BatchType, interleaved, join_batches
from mobileclip.data.loading.chunks import Chunk, Maker, ShardDataset
from mobileclip.data.loading.crew import Begin, Crew
from mobileclip.data.loading.data_order import DataOrder
from mobileclip.data.loading.endless_order import EndlessOrder
from mobileclip.data.loading.order import CursorRow, StreamPosition, rows
from mobileclip.data.loading.shard_reader import ShardReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.loading.uid_list import Keep, UidList
from mobileclip.data.randomness import derived_seed
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json, to_json

# Steps behind the last one whose position is known: whoever takes batches in advance asks for an earlier one.
_KNOWN_STEPS = 4
_STREAM = -1
# Of what was left out and is not taken by anyone; all are counted.
_MOST_NAMED = 1_000_000


@attrs.frozen(kw_only=True)
class _Progress:
    """How far iterating has come.

    Args:
        epoch: that it is in.
        first_epoch: of those that it goes through.
        position: within the epoch, behind a batch that left no samples waiting for the next one; what its data is, is
            known when somebody asks.
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
        reader: of the shards.
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
        self.shards = reader.names
        self._data = DataOrder(spec, reader)
        self.rank, self.world_size = self._data.rank, self._data.world_size
        self._first_epoch = 0
        self._progress, self._resumed = _Progress(), cast("_Progress | None", None)
        self.report = SkipReport()
        """What the current or last epoch, or stream, read and skipped, in this process."""
        self._dataset: ShardDataset[BatchType] | None = None
        self._crew: Crew[Chunk[BatchType]] | None = None
        self.num_lost = 0
        """How many workers have died, in whose place others went on."""
        # Where this process stands behind the last batches; what its data is, is known when somebody asks.
        self._known: deque[StreamPosition] = deque(maxlen=_KNOWN_STEPS)
        # Shards that the epochs which begin in this stream do without.
        self._dead: tuple[int, ...] = ()
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
        position = self._progress.position
        if position.places and not position.data:
            position = attrs.evolve(position, data=self._data.digest)
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
        if not isinstance(self._data.order, EndlessOrder):
            yield from islice(self._whole_epoch(start), start.num_since, None)
            return
        num_samples = sum(self._data.sizes) if self.spec.num_samples is None else self.spec.num_samples
        position = start.position
        if not position.places:
            starts = rows(dict(enumerate(self._data.order.start(start.epoch))))
            position = StreamPosition(num_readers=self._data.order.num_readers, places=starts)
        for batch in islice(self.stream(position), self._batches_per_epoch(num_samples) - position.first_batch):
            position = attrs.evolve(self._known[-1], data="")
            yield attrs.evolve(start, position=position), batch

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
            position: of an earlier stream, of this process or of all; None for the start.

        Raises:
            ValueError: if there are fewer samples than one batch needs, none can be used, or the position is of another
                order.
        """
        position = self._data.taken_up(StreamPosition() if position is None else position)
        places = [place for place in position.places if place[0] % self.world_size == self.rank]
        self._dead = position.found_dead
        self._left_out.clear()
        self._known.clear()
        # Of the run so far, the first process tells.
        skipped = position.skipped if self.rank == 0 else {}
        self._known.append(attrs.evolve(position, places=places, skipped=skipped))
        for chunks in self._steps(_STREAM, position):
            self._note(chunks)
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
                return attrs.evolve(known, data=self._data.digest)
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

    def _note(self, chunks: Sequence[Chunk[BatchType]]) -> None:
        """Note where the stream stands behind one batch more, and what was left out for it."""
        last = self._known[-1]
        skips = [skip for chunk in chunks for skip in chunk.skips]
        self._left_out.extend((last.first_batch + 1, skip) for skip in skips)
        steps = (last.first_batch, last.first_batch + 1)
        before, now = (self._data.order.step(one, self._data.batch_size)[1].start for one in steps)
        position = attrs.evolve(
            last,
            first_batch=last.first_batch + 1,
            num_readers=self._data.order.num_readers if now else 0,
            places=_moved(last.places, chunks) if now else (),
            skipped=Counter(last.skipped) + Counter(skip.reason for skip in skips),
            dead=() if not now else last.dead if before else self._dead,
            found_dead=_found(last.found_dead, chunks),
        )
        self._known.append(position)

    def _whole_epoch(self, start: _Progress) -> Iterator[tuple[_Progress, BatchType]]:
        begin = start.position
        begin = self._data.taken_up(begin) if begin.places else self._data.with_dead(begin)
        dead = begin.dead if begin.places else begin.found_dead
        size, places, found = self.spec.batch_size, begin.places, begin.found_dead
        waiting: list[BatchType] = []
        progress = attrs.evolve(start, num_since=0)
        for step, chunks in enumerate(self._steps(start.epoch, begin), start=begin.first_batch + 1):
            batch = _whole(chunks)
            places, found = _moved(places, chunks), _found(found, chunks)
            if batch is not None and len(batch) < size:
                # Where samples are missing, what is left makes complete batches together.
                batch, waiting = _first_rows([*waiting, batch], size)
            if batch is None:
                continue
            progress = attrs.evolve(progress, num_since=progress.num_since + 1)
            if not waiting:
                position = StreamPosition(
                    first_batch=step,
                    num_readers=self._data.order.num_readers,
                    places=places,
                    dead=dead,
                    found_dead=found,
                )
                progress = attrs.evolve(progress, num_since=0, position=position)
            yield progress, batch
        if waiting and not self.spec.drop_last:
            yield attrs.evolve(progress, num_since=progress.num_since + 1), join_batches(waiting)
        if self.report.num_read == 0 and not start.position.places:
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

    def _batches_per_epoch(self, num_samples: int) -> int:
        drop_last = self.spec.drop_last or self.spec.sampling != "epoch"
        full, rest = divmod(num_samples, self._data.batch_size)
        return full + (rest > 0 and not drop_last)

    def _nothing(self) -> str:
        if self.report.num_read:
            return f"nothing more can be read of {len(self.shards)} shards: {self.report}"
        return f"not one sample of {len(self.shards)} shards can be used: {self.report}"

    @property
    def _num_workers(self) -> int:
        """How many share the work: as many as have a reader, at least one."""
        return max(1, min(self.spec.num_workers, self._data.order.num_readers // self.world_size))

    def _chunks(self, epoch: int, start: StreamPosition) -> Iterator[Chunk[BatchType]]:
        if self._dataset is None:
            try:
                self._dataset = self._new_dataset()
            except RuntimeError as error:
                raise_machine_fault(error, "sharing memory with the workers that load data")
                raise
        dataset, num_workers = self._dataset, self._num_workers
        if not self.spec.num_workers:
            yield from dataset.chunks(0, 1, Begin(number=0, epoch=epoch, start=start))
            return
        if self._crew is None or not self._crew.end.alive:
            seed = derived_seed(self.spec.seed, "process", self.rank)
            self._crew = Crew(dataset, num_workers=num_workers, seconds=self.spec.worker_seconds, seed=seed)
        number = self._crew.begin(epoch, start)
        for worker in cycle(range(num_workers)):
            chunk = self._crew.take(worker, number, on_lost=self._replaced)
            if chunk is None:
                return
            yield chunk

    def _replaced(self) -> StreamPosition:
        """Count a worker that died, and return where the one in its place goes on."""
        self.num_lost += 1
        return attrs.evolve(self._known[-1] if self._known else StreamPosition(), found_dead=self._dead)

    def _new_dataset(self) -> ShardDataset[BatchType]:
        return ShardDataset(
            self.spec,
            shards=self._data.reader,
            order=self._data.order,
            maker=self._maker(),
            keep=self._keep,
            world=(self.rank, self.world_size),
            left_out=[skip for skips in self._data.dead.values() for skip in skips],
        )


def _whole(chunks: Sequence[Chunk[BatchType]]) -> BatchType | None:
    """Return the batch that the chunks of all workers make, its samples in their order."""
    parts = [(chunk.batch, chunk.numbers) for chunk in chunks if chunk.batch is not None]
    return interleaved([batch for batch, _ in parts], [numbers for _, numbers in parts]) if parts else None


def _moved(places: Sequence[CursorRow], chunks: Sequence[Chunk[Any]]) -> tuple[CursorRow, ...]:
    """Return where readers stand behind one step more."""
    return tuple({place[0]: place for own in (places, *(chunk.places for chunk in chunks)) for place in own}.values())


def _found(dead: Sequence[int], chunks: Sequence[Chunk[Any]]) -> tuple[int, ...]:
    """Return the shards without samples that are known behind one step more."""
    return tuple(sorted({*dead, *(number for chunk in chunks for number in chunk.dead)}))


def _first_rows(waiting: list[BatchType], size: int) -> tuple[BatchType | None, list[BatchType]]:
    """Return the first complete batch of incomplete ones, where they suffice, and what is left."""
    if sum(map(len, waiting)) < size:
        return None, waiting
    joined = join_batches(waiting)
    return joined.rows(0, size), [joined.rows(size, len(joined))] if len(joined) > size else []

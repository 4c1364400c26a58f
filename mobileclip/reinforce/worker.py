"""The work on one unit of the source: write a temporary shard, verify the shard, and move it to the final path."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Event, Semaphore
from typing import Any, Generic, TypeVar

import attrs
import torch

from mobileclip import storage
from mobileclip.data import (
    ImageTextSample,
    ReinforcedSample,
    Skip,
    SkipReport,
    read_reinforced_samples,
    read_samples,
)
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import sample_members
from mobileclip.data.shards.files import read_shard, write_shard_members
from mobileclip.data.skips import CONNECTION_FAILED, attempt
from mobileclip.data.workers import submitted_ahead
from mobileclip.datasets import Unit
from mobileclip.engines import FatalError, OnProgress, Work, WorkerResources
from mobileclip.machine import raise_machine_fault
from mobileclip.reinforce.captioners import Captioner
from mobileclip.reinforce.encoding import NOT_FINITE, BatchEncoder, measure_agreement
from mobileclip.reinforce.manifest import ShardEntry, UnreachedRows, open_card, write_skips
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble, build_ensemble

T = TypeVar("T")
ResultT = TypeVar("ResultT")
Member = tuple[str, Mapping[str, bytes]]


class _StoppedError(Exception):
    """Raised in the worker thread if the caller no longer waits for the work."""


class WatchedSource(Generic[T]):
    """An iterable for a worker thread; the starting thread sees the end of the source, and can stop the worker.

    Args:
        source: iterable that the worker thread reads.
    """

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self._ended = Event()
        self._stopped = Event()

    def __iter__(self) -> Iterator[T]:
        try:
            for one in self._source:
                if self._stopped.is_set():
                    raise _StoppedError
                yield one
        finally:
            self._ended.set()

    def pass_to(self, work: Callable[[], ResultT]) -> Future[ResultT]:
        """Run `work` on this source in another thread; at the end of the source, return the future of `work`.

        Args:
            work: function that iterates over this object once.

        Raises:
            Exception: the error of `work`, if `work` fails before the end of the source.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="making")
        outcome = pool.submit(work)
        pool.shutdown(wait=False)
        outcome.add_done_callback(lambda _: self._ended.set())
        try:
            self._ended.wait()
        except BaseException:
            # An interrupted process waits for its threads, so this thread must end at the next sample.
            self._stopped.set()
            wait([outcome])
            raise
        if outcome.done():
            outcome.result()
        return outcome


# Shards written here are read back without the limits for unknown shards.
_NO_LIMITS = SampleLimits(member_bytes=2**50, sample_bytes=2**50, text_bytes=2**50, embedding_bytes=2**50)

# Reasons for an unreadable unit, and for a store that failed during reading.
_UNREAD = ("unreadable_shard", CONNECTION_FAILED)


@attrs.frozen(kw_only=True, eq=False)
class ReinforcementWork(Work[Unit, ShardEntry]):
    """The reinforcement of units, for an engine.

    Args:
        spec: options of the reinforcement.
        teachers: loaded teachers to use instead of the spec's teachers, for an engine in this process; None for the
            spec's teachers.
        captioner: loaded captioner to use instead of the spec's captioner; None for the spec's captioner.
        measured: name of the unit on which to measure the teachers' agreement; None for no measurement.
    """

    spec: ReinforcementSpec
    teachers: TeacherEnsemble | None = None
    captioner: Captioner | None = None
    measured: str | None = None

    def open(self, resources: WorkerResources) -> ShardWorker:
        """Return a worker with the given models; without given models, load the spec's teachers and captioner."""
        spec, teachers, captioner = self.spec, self.teachers, self.captioner
        if teachers is None and captioner is None:
            teachers = build_ensemble(spec.teachers, resources.device) if spec.teachers else None
            captioner = None if spec.captioner is None else spec.captioner.build(resources.device)
        loaded: dict[str, Any] = {"teachers": teachers, "captioner": captioner, "measured": self.measured}
        return ShardWorker(spec=spec, num_threads=resources.num_threads, **loaded)


@attrs.frozen(kw_only=True, eq=False)
class ShardWorker:
    """Writes shards with loaded teachers and captioners; at the start, the worker writes or compares the card.

    Args:
        spec: options of the reinforcement.
        teachers: teachers of the stored embeddings; None for captions only.
        captioner: captioner of the synthetic captions; None for no captions.
        num_threads: number of batches to process concurrently, from one or two units, with one thread per batch; the
            threads share PyTorch's threads. On the CPU, one thread per core is fastest. With a GPU, the threads decode
            and augment while the GPU computes.
        measured: name of the unit on which to measure the teachers' agreement; None for no measurement.

    Raises:
        ValueError: if there are neither teachers nor a captioner, or the output was written with different options,
            teachers or captioners.
    """

    spec: ReinforcementSpec
    teachers: TeacherEnsemble | None
    captioner: Captioner | None
    num_threads: int
    measured: str | None = None
    _torch_threads: int = attrs.field(init=False, factory=torch.get_num_threads)
    _slots: Semaphore = attrs.field(init=False)

    @_slots.default
    def _all_free(self) -> Semaphore:
        return Semaphore(self.num_threads)

    def __attrs_post_init__(self) -> None:
        if self.teachers is None and self.captioner is None:
            raise ValueError("the spec has neither teachers nor a captioner; add at least one of them")
        open_card(self.spec, self.teachers, self.captioner)

    def __call__(self, unit: Unit, on_samples: OnProgress) -> Callable[[], ShardEntry]:
        """Write a unit's shard to a temporary file; return a function that moves the file and returns the entry.

        The call returns at the end of the unit's source. The unit's last batches therefore overlap with the next unit's
        first batches, and the device never waits.

        Args:
            unit: unit of the source; the worker replaces an existing shard.
            on_samples: function that another thread calls with the number of samples since the last call.

        Raises:
            FatalError: if no sample has finite embeddings, or there is no space for the shard.
            ValueError: if the unit cannot be read, or the shard cannot be written.
            StorageError: if reading or writing fails temporarily.
        """
        skips = SkipReport()
        watched = WatchedSource(unit.read(skips))
        made = watched.pass_to(partial(self._make, unit, watched, skips, on_samples))
        return lambda: self._place(*made.result(), skips)

    def _make(
        self, unit: Unit, source: Iterable[ImageTextSample], skips: SkipReport, on_samples: OnProgress
    ) -> tuple[ShardEntry, Sequence[str], Path | None, ExitStack]:
        """Write a unit's temporary shard; return its entry, keys, file (None if empty), and the stack that moves it."""
        compared, keys = list[ReinforcedSample](), list[str]()
        target, fingerprint, staged = storage.join(self.spec.output, unit.name), unit.fingerprint(), None
        with ExitStack() as placing:
            with _named_errors(target), closing(self._samples(unit.name, source, skips)) as samples:
                made = self._members(unit, samples, skips, compared, on_samples)
                if isinstance(unit, UnreachedRows):
                    made = _merged(unit, dict(made), target)
                if (first := next(made, None)) is not None:
                    storage.make_directory_of(target)
                    staged = placing.enter_context(storage.atomic_file(target))
                    write_shard_members(staged, _noted(chain([first], made), keys))
            _refuse_failures(unit, keys, skips)
            entry = ShardEntry(shard=unit.name, fingerprint=fingerprint, num_samples=0, num_bytes=0)
            if isinstance(unit, UnreachedRows):
                entry = attrs.evolve(unit.entry, attempts=unit.entry.attempts + 1)
            elif self.teachers is not None:
                entry = attrs.evolve(entry, agreement=measure_agreement(compared, self.teachers, self.spec))
            if staged is not None:
                size = staged.stat().st_size
                entry = attrs.evolve(entry, fingerprint=fingerprint, num_samples=len(keys), num_bytes=size)
            entry = attrs.evolve(entry, skipped=dict(sorted(skips.counts.items())))
            return entry, keys, staged, placing.pop_all()

    def _members(
        self,
        unit: Unit,
        samples: Iterable[ImageTextSample],
        skips: SkipReport,
        compared: list[ReinforcedSample],
        on_samples: OnProgress,
    ) -> Iterator[Member]:
        """Yield each sample's members; collect the first samples of the measured unit in `compared`."""
        num_compared = self.spec.num_compared if unit.name == self.measured else 0
        for sample in samples:
            if isinstance(sample, ReinforcedSample) and len(compared) < num_compared:
                compared.append(sample)
            make = partial(sample_members, sample, self.spec.layout)
            members = attempt(make, key=sample.key, shard=unit.name, on_skip=skips.add)
            if members is not None:
                yield sample.key, members
            on_samples(1)

    def _place(
        self, entry: ShardEntry, keys: Sequence[str], staged: Path | None, placing: ExitStack, skips: SkipReport
    ) -> ShardEntry:
        """Read a temporary shard back, and move the shard to its final path."""
        target = storage.join(self.spec.output, entry.shard)
        with _named_errors(target):
            with placing:
                if staged is not None:
                    self._read_back(staged, keys)
            if not entry.num_samples:
                storage.remove(target)
            write_skips(self.spec.output, entry.shard, skips)
        return entry

    def _samples(
        self, shard: str, source: Iterable[ImageTextSample], skips: SkipReport
    ) -> Generator[ImageTextSample, None, None]:
        """Yield a unit's reinforced samples in order, with several batches in progress."""
        encoder = BatchEncoder(spec=self.spec, teachers=self.teachers, captioner=self.captioner, shard=shard)
        left = iter(source)
        batches = iter(lambda: list(islice(left, self.spec.batch_size)), [])

        def encode(batch: Sequence[ImageTextSample]) -> list[ImageTextSample | Skip]:
            with self._slots:
                return encoder(batch)

        with self._threads() as pool:
            try:
                for _, future, _ in submitted_ahead(
                    lambda batch: pool.submit(encode, batch), batches, ahead=2 * self.num_threads
                ):
                    for result in future.result():
                        if isinstance(result, Skip):
                            skips.add(result)
                        else:
                            yield result
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        """Yield a pool of threads that share PyTorch's threads."""
        share = max(1, self._torch_threads // self.num_threads)
        try:
            with ThreadPoolExecutor(self.num_threads, initializer=_use_threads, initargs=(share,)) as pool:
                yield pool
        finally:
            torch.set_num_threads(self._torch_threads)

    def _read_back(self, path: Path, keys: Sequence[str]) -> None:
        lost = SkipReport(log=False)
        read = read_samples if self.teachers is None else read_reinforced_samples
        if [sample.key for sample in read([path], lost, _NO_LIMITS)] != list(keys) or lost.counts:
            raise storage.StorageError(f"the shard on disk differs from the written data: {lost}")


def _use_threads(count: int) -> None:
    """Set the number of PyTorch threads for calls in this thread."""
    # On its first access, a thread copies the last number set in any thread; this must not happen after the call below.
    torch.get_num_threads()
    torch.set_num_threads(count)


@contextmanager
def _named_errors(target: str) -> Iterator[None]:
    """Add the shard's path to a write error; end the run if the error would also affect every other shard."""
    try:
        yield
    except storage.StorageError as error:
        raise storage.StorageError(f"{target} could not be written: {error}") from error
    except OSError as error:
        raise_machine_fault(error, f"so that {target} could not be written")
        what = f"{target} could not be written: {error.strerror or error}"
        if isinstance(error, PermissionError):
            raise FatalError(f"{what}; check the disk and start the job again; finished shards are saved") from error
        raise (storage.StorageError if storage.is_transient(error) else ValueError)(what) from error


def _noted(members: Iterable[Member], keys: list[str]) -> Iterator[Member]:
    for key, content in members:
        keys.append(key)
        yield key, content


def _merged(unit: UnreachedRows, new: Mapping[str, Mapping[str, bytes]], target: str) -> Iterator[Member]:
    """Yield a shard's samples merged with new samples, in the source's order; without new samples, yield nothing."""
    if not new:
        return
    place = {key: number for number, key in reversed(list(enumerate(unit.unit.keys())))}
    lost: list[Skip] = []
    held = read_shard(target, lost.append, _NO_LIMITS) if unit.entry.num_samples else ()
    pairs = ((raw.key, raw.members) for raw in held)

    def order(pair: Member) -> int:
        return place.get(pair[0], -1)

    there: set[str] = set()
    for key, members in heapq.merge(pairs, sorted(new.items(), key=order), key=order):
        # If a key has several rows, the existing sample stays.
        if key not in new or key not in there:
            there.add(key)
            yield key, members
    for skip in lost:
        raise skip.error(f"{target} cannot be read: {skip.detail}")


def _refuse_failures(unit: Unit, keys: Sequence[str], skips: SkipReport) -> None:
    """Raise an error if a unit was truncated (a retry may help), or if no sample of the unit has finite embeddings."""
    for reason in _UNREAD:
        for skip in skips.named.get(reason, ()):
            raise skip.error(f"{reason}: {skip.detail}")
    if not keys and skips.counts[NOT_FINITE] and not isinstance(unit, UnreachedRows):
        detail = skips.named[NOT_FINITE][0].detail
        raise FatalError(f"no sample of {unit.name} has finite embeddings: {detail}")

"""What a worker does with one unit of the source: one shard, written aside, read back, and moved to its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from urllib.parse import quote

import attrs
import torch

from mobileclip import storage
from mobileclip.data import (
    ImageTextSample,
    ReinforcedSample,
    Skip,
    SkipReport,
    Unit,
    ViewAgreement,
    read_reinforced_samples,
    read_samples,
)
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import sample_members
from mobileclip.data.shards.files import write_shard_members
from mobileclip.data.skips import attempt
from mobileclip.reinforce.agreement import MeasuredUnit, measure_agreement
from mobileclip.reinforce.captioners import Captioner
from mobileclip.reinforce.encoding import NOT_FINITE, BatchEncoder
from mobileclip.reinforce.manifest import ShardEntry, may_pass
from mobileclip.reinforce.provenance import open_card
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble, build_ensemble
from mobileclip.serialization import to_json

# What was written here is read back whole, whatever a stranger's shard may hold.
_NO_LIMITS = SampleLimits(member_bytes=2**50, sample_bytes=2**50, text_bytes=2**50, embedding_bytes=2**50)

STAGING = ".staging"
SKIPPED = "skipped"

OnSamples = Callable[[int], None]


def unheard(_count: int) -> None:
    """Take no notice of finished samples."""


@attrs.frozen(kw_only=True, eq=False)
class ShardWorker:
    """Makes shards with teachers that are loaded once, and enters them into the output's card first.

    Args:
        spec: the choices.
        teachers: whose embeddings are stored; None for captions alone.
        captioner: who writes synthetic captions; None for none.
        num_threads: batches in work at once, each in a thread of its own, which share torch's threads. On the CPU one
            per core is fastest; on a GPU they decode and replay while it works.

    Raises:
        ValueError: if there are neither teachers nor a captioner, or the output was made with other choices, teachers
            or captioners.
    """

    spec: ReinforcementSpec
    teachers: TeacherEnsemble | None
    captioner: Captioner | None
    num_threads: int

    @classmethod
    def build(cls, spec: ReinforcementSpec, *, device: str, num_threads: int) -> ShardWorker:
        """Load the spec's teachers and captioner on a device."""
        return cls(
            spec=spec,
            teachers=build_ensemble(spec.teachers, device) if spec.teachers else None,
            captioner=None if spec.captioner is None else spec.captioner.build(device),
            num_threads=num_threads,
        )

    def __attrs_post_init__(self) -> None:
        if self.teachers is None and self.captioner is None:
            raise ValueError(
                "there are neither teachers nor a captioner, so there is nothing to reinforce with; give the spec one"
            )
        open_card(self.spec, self.teachers, self.captioner)

    def __call__(self, unit: Unit, on_samples: OnSamples) -> ShardEntry:
        """Make the shard of a unit, whatever is there already.

        Args:
            unit: part of the source.
            on_samples: called with the number of samples that were finished since the last call.

        Raises:
            ValueError: if no sample gets finite embeddings, or the shard cannot be written.
        """
        skips = SkipReport()
        fingerprint = self._fingerprint(unit, skips)
        target = storage.join(self.spec.output, unit.name)
        num_samples = num_bytes = 0
        compared: list[ReinforcedSample] = []
        num_compared = self.spec.num_compared if isinstance(unit, MeasuredUnit) else 0
        with _staging(self.spec.output) as folder:
            # The unit's folders are part of the file's name.
            staged = folder / f"{os.getpid()}.{quote(unit.name, safe='')}"
            try:
                if fingerprint:
                    with closing(self._samples(unit, skips)) as samples:
                        kept = _keeping(compared, samples, num_compared)
                        num_samples = self._write(staged, unit.name, _watched(kept, on_samples), skips)
                if num_samples:
                    num_bytes = staged.stat().st_size
                    storage.make_directory_of(target)
                    storage.move(staged, target)
                elif not may_pass(skips.counts):
                    storage.remove(target)
                self._write_skips(unit, skips)
            except OSError as error:
                raise ValueError(
                    f"{target} could not be written: {error.strerror or error}; see to the disk and run this again: "
                    "finished shards are kept"
                ) from error
            finally:
                staged.unlink(missing_ok=True)
        if not num_samples and skips.counts[NOT_FINITE]:
            detail = skips.named[NOT_FINITE][0].detail
            raise ValueError(f"not one sample of {unit.name} got embeddings that are finite: {detail}")
        return ShardEntry(
            shard=unit.name,
            fingerprint=fingerprint,
            num_samples=num_samples,
            num_bytes=num_bytes,
            skipped=dict(sorted(skips.counts.items())),
            agreement=self._agreement(compared),
        )

    def _agreement(self, samples: Sequence[ReinforcedSample]) -> ViewAgreement | None:
        return None if self.teachers is None else measure_agreement(samples, self.teachers, self.spec)

    def _fingerprint(self, unit: Unit, skips: SkipReport) -> str:
        try:
            return unit.fingerprint()
        except (ValueError, OSError) as error:
            skips.add(Skip(reason="unreadable_shard", key="", shard=unit.name, detail=str(error)))
            return ""

    def _write_skips(self, unit: Unit, skips: SkipReport) -> None:
        """Name what was left out in a file of the shard's own."""
        path = storage.join(storage.join(self.spec.output, SKIPPED), f"{unit.name}.jsonl")
        if not skips.counts:
            storage.remove(path)
            return
        storage.make_directory_of(path)
        with storage.atomic_write(path) as stream:
            for named in skips.named.values():
                stream.writelines(to_json(skip).encode() + b"\n" for skip in named)

    def _samples(self, unit: Unit, skips: SkipReport) -> Generator[ImageTextSample, None, None]:
        """Yield what is to be stored of a unit, in its order, with several batches under way."""
        encode = BatchEncoder(spec=self.spec, teachers=self.teachers, captioner=self.captioner, shard=unit.name)
        source = unit.read(skips)
        batches = iter(lambda: list(islice(source, self.spec.batch_size)), [])
        with _threads(self.num_threads) as pool:
            futures = deque(pool.submit(encode, batch) for batch in islice(batches, 2 * self.num_threads))
            try:
                while futures:
                    for result in futures.popleft().result():
                        if isinstance(result, Skip):
                            skips.add(result)
                        else:
                            yield result
                    futures.extend(pool.submit(encode, batch) for batch in islice(batches, 1))
            finally:
                for future in futures:
                    future.cancel()

    def _write(self, path: Path, shard: str, samples: Iterable[ImageTextSample], skips: SkipReport) -> int:
        """Write a shard unless there is nothing to write, read it back, and return the number of samples."""
        keys: list[str] = []
        stored = self._members(shard, samples, skips)
        first = next(stored, None)
        if first is None:
            return 0
        write_shard_members(path, _noting(keys, chain([first], stored)))
        lost = SkipReport(log=False)
        read = read_samples if self.teachers is None else read_reinforced_samples
        if [sample.key for sample in read([path], lost, _NO_LIMITS)] != keys or lost.counts:
            raise OSError(f"what was written is not what is read back: {lost}")
        return len(keys)

    def _members(
        self, shard: str, samples: Iterable[ImageTextSample], skips: SkipReport
    ) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """Yield what is stored of every sample that can be stored."""
        for sample in samples:
            make = partial(sample_members, sample, self.spec.layout)
            members = attempt(make, key=sample.key, shard=shard, on_skip=skips.add)
            if members is not None:
                yield sample.key, members


def default_num_threads(device: str, num_workers: int) -> int:
    """Return how many threads a worker gets: its share of the cores, and no more than keep a GPU busy."""
    share = max(1, (os.cpu_count() or 1) // num_workers)
    return share if device == "cpu" else max(2, min(16, share))


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that share torch's own threads among them."""
    before = torch.get_num_threads()
    try:
        share = max(1, before // count)
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@contextmanager
def _staging(output: str) -> Iterator[Path]:
    """Yield a local folder for unfinished shards, on the output's own disk where that is local."""
    if storage.is_remote(output):
        folder = Path(tempfile.mkdtemp(prefix="mobileclip-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        folder = Path(output) / STAGING
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _keeping(kept: list[ReinforcedSample], samples: Iterable[ImageTextSample], most: int) -> Iterator[ImageTextSample]:
    """Yield the samples, and put the first reinforced ones of them into a list, at most so many."""
    for sample in samples:
        if isinstance(sample, ReinforcedSample) and len(kept) < most:
            kept.append(sample)
        yield sample


def _watched(samples: Iterable[ImageTextSample], on_samples: OnSamples) -> Iterator[ImageTextSample]:
    for sample in samples:
        yield sample
        on_samples(1)


def _noting(
    keys: list[str], samples: Iterable[tuple[str, Mapping[str, bytes]]]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    for key, members in samples:
        keys.append(key)
        yield key, members

"""An index brought up to date: what is new is encoded, what moved is recognised, what is gone is dropped."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.indexing.units import IndexUnit, IndexWork, units_of
from mobileclip.collections.reading.findings import Findings, Recognised
from mobileclip.collections.reading.options import IndexOptions, IndexReport
from mobileclip.collections.reading.reader import FileReader, FileTask, KnownContent
from mobileclip.collections.reading.scanning import FoundFile, Scan, estimated_pictures
from mobileclip.collections.store.segments import COLUMNS, Row, read_segment, unpacked, vectors_of
from mobileclip.collections.store.store import Place, Store
from mobileclip.data.videos.formats import is_video_name
from mobileclip.data.workers import LostProcessError
from mobileclip.engines import (
    Engine,
    Hold,
    Listener,
    LocalEngine,
    Retries,
    Run,
    SetAside,
    read_set_aside,
    write_set_aside,
)
from mobileclip.inference.quickening import quickened
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

if TYPE_CHECKING:
    import pyarrow as pa

logger = get_logger(__name__)

# A process takes seconds to start, and is not worth it for fewer.
_EACH = 64
# Segments in memory, of up to 100 MB, that embeddings of known pictures are copied from.
_MOST_LOADED = 4
# As many as forms of a model are tried on.
_EXAMPLES = 16
_LOOKUP = ("path", "part", "size", "mtime_ns", "sha256", "problem")
# Processes with a model each, where one that reads was lost.
_MOST_APART = 4
_AT_ONCE = Retries(tries=2, pause_seconds=0.0)
MARK = "reading"
"""An empty file, which is there while a job that reads in its own process has written nothing down yet."""

GROUPS = "groups of files"
"""What the units of an engine are called."""


@attrs.frozen(kw_only=True)
class _KnownRow:
    place: Place
    part: str | None
    size: int
    mtime_ns: int
    sha256: str
    problem: bool


def update(
    store: Store,
    clip: Callable[[], ImageTextModel],
    found: Scan,
    options: IndexOptions,
    engine: Engine | None = None,
) -> IndexReport:
    """Bring an index up to date with the files that were found; whoever calls it holds the index.

    What is finished is written down every few seconds, so that a job that is killed loses no more than these.

    Args:
        store: of the index.
        clip: gives the model that it is of; not called where nothing is to be encoded, nor with an engine, whose
            workers load it.
        found: the files.
        options: how.
        engine: whose workers read and encode; None for this process, with those that decode beside it.

    Raises:
        OSError: if the index cannot be written.
        ValueError: if a process that decodes ends abruptly, or no worker can work.
    """
    return _Update(store, clip, found, options, engine).run()


class _Update:
    """One run of `update`, and what it knows so far."""

    def __init__(
        self,
        store: Store,
        clip: Callable[[], ImageTextModel],
        found: Scan,
        options: IndexOptions,
        engine: Engine | None,
    ) -> None:
        self.store, self.clip, self.found, self.options, self.engine = store, clip, found, options, engine
        self._look_up()
        self.counts: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self.uninstalled: Counter[str] = Counter()
        self.pending = Findings()
        self.written = time.monotonic()
        self._mark = store.folder / MARK
        self._loaded: dict[str, tuple[pa.Table, NDArray[np.float16]]] = {}

    def run(self) -> IndexReport:
        """Do what has to be done, and say what was."""
        files = self.found.files
        work = [file for file in files.values() if not self._is_as_before(file)]
        self.store.remember(self.found.inputs)
        set_aside = self._read(work) if work else ()
        gone = [path for path in self.rows_of if path not in files and self.found.covers(path)]
        removed = [row.place for path in gone for row in self.rows_of[path]]
        self.store.append((), removed=removed)
        self.store.forget(gone)
        self.store.merge()
        self._forget_set_aside()
        return IndexReport(
            num_encoded=self.counts["encoded"],
            num_known=self.counts["known"],
            num_unchanged=self.counts["unchanged"],
            num_removed=len(removed),
            num_unreadable=self.counts["unreadable before"],
            unreadable=tuple(dict.fromkeys(self.unreadable)),
            uninstalled=dict(self.uninstalled),
            left_out=self.found.left_out,
            set_aside=set_aside,
        )

    def _look_up(self) -> None:
        """Enter what the index knows of files."""
        self.rows_of: dict[str, list[_KnownRow]] = defaultdict(list)
        self.hashes_of_size: dict[int, list[str]] = defaultdict(list)
        self.place_of_hash: dict[str, Place] = {}
        self.video_of_hash: dict[str, str] = {}
        self.finished_of_size: dict[int, list[str]] = defaultdict(list)
        self.known = KnownContent(pictures=self.hashes_of_size, videos=self.video_of_hash)
        self._to_replace: dict[str, dict[str | None, list[Place]]] = {}
        self.finished = finished = {one.path: one for one in self.store.manifest.finished}
        for one in finished.values():
            self.finished_of_size[one.num_bytes].append(one.path)
        for segment, table in self.store.read(_LOOKUP):
            removed = set(segment.removed)
            columns = (table[name].to_pylist() for name in _LOOKUP)
            for number, (path, part, size, mtime_ns, sha256, problem) in enumerate(zip(*columns, strict=True)):
                if number in removed:
                    continue
                place = (segment.name, number)
                row = _KnownRow(
                    place=place, part=part, size=size, mtime_ns=mtime_ns, sha256=sha256, problem=problem is not None
                )
                self.rows_of[path].append(row)
                if is_video_name(path):
                    # Of one that was not read to its end, some frames are missing.
                    if path in finished:
                        self.video_of_hash[sha256] = path
                elif problem is None and sha256 not in self.place_of_hash:
                    self.place_of_hash[sha256] = place
                    self.hashes_of_size[size].append(sha256)

    def _is_as_before(self, file: FoundFile) -> bool:
        """Return whether nothing has to be read of a file, and count what it holds."""
        known = self.rows_of.get(file.path, [])
        if file.kind != "picture":
            before = self.finished.get(file.path)
            is_same = before is not None and (before.num_bytes, before.mtime_ns) == (file.size, file.mtime_ns)
        else:
            is_same = [(row.size, row.mtime_ns) for row in known] == [(file.size, file.mtime_ns)]
        if is_same:
            num_problems = sum(row.problem for row in known)
            self.counts["unreadable before"] += num_problems
            self.counts["unchanged"] += len(known) - num_problems
        return is_same

    def _task(self, file: FoundFile) -> FileTask:
        if file.kind != "shard":
            return FileTask(file=file)
        known = self.rows_of.get(file.path, [])
        return FileTask(
            file=file,
            parts=frozenset(row.part for row in known),
            done=frozenset(row.part for row in known if row.mtime_ns == file.mtime_ns),
        )

    def _read(self, work: list[FoundFile]) -> tuple[SetAside, ...]:
        """Read and encode, and return what was set aside.

        A file may end the process that reads it. Where one was lost, and where the last job was killed before it had
        written anything down, processes that the job outlives do the rest, and find the file.
        """
        if self.engine is not None:
            return self._share(work, self.engine)
        suspects = {aside.unit for aside in read_set_aside(str(self.store.folder))}
        if self._mark.exists():
            logger.warning("the last job was killed before it had written anything down; files are read apart now")
            apart, here = work, []
        else:
            apart = [file for file in work if file.path in suspects]
            here = [file for file in work if file.path not in suspects]
        try:
            self._mark.touch()
            if here:
                self._read_here(here)
        except LostProcessError as error:
            logger.warning("%s. What is left is read apart now", str(error).partition(":")[0])
            apart = self._left_of(work)
        finally:
            self._mark.unlink(missing_ok=True)
        return self._share(apart, self._engine_apart()) if apart else ()

    def _forget_set_aside(self) -> None:
        """Drop files that are gone from the list of those that were set aside."""
        folder = str(self.store.folder)
        listed = read_set_aside(folder)
        kept = [one for one in listed if one.unit in self.found.files or not self.found.covers(one.unit)]
        if kept != list(listed):
            write_set_aside(folder, kept)

    def _left_of(self, work: Iterable[FoundFile]) -> list[FoundFile]:
        """Return the files that are not in the index yet, after some were written down."""
        counts = self.counts.copy()
        self._look_up()
        left = [file for file in work if not self._is_as_before(file)]
        self.counts = counts
        return left

    def _engine_apart(self) -> LocalEngine:
        """Return an engine of few processes, since each has a model."""
        device = str(next(self.clip().model.parameters()).device)
        num_workers = min(self.options.num_workers, _MOST_APART)
        return LocalEngine(num_workers=num_workers, devices=(device,), apart=True, retries=_AT_ONCE)

    def _read_here(self, work: list[FoundFile]) -> None:
        """Read and encode in this process, with those that decode beside it."""
        options = self.options
        num_about = estimated_pictures(work)
        clip = quickened(
            self.clip(),
            (Path(file.path) for file in work if file.kind == "picture"),
            num_about,
            precision=options.precision,
            show_progress=options.show_progress,
        )
        reader = FileReader([self._task(file) for file in work], self.known, options, self.store.manifest.dim)
        num_workers = min(options.num_workers, 1 + num_about // _EACH)
        self.written = time.monotonic()
        try:
            with self._bar(num_about) as bar:
                for _ in reader.read(clip, num_workers):
                    # A file that is being read may hold more than was expected.
                    is_more = bar.done >= reader.num_expected
                    bar.expect(bar.done + 2 if is_more else reader.num_expected)
                    bar.advance()
                    if self._is_due(reader.findings.num_rows):
                        self.pending.add(reader.take())
                        self._flush()
        except (KeyboardInterrupt, ValueError):
            self.pending.add(reader.take())
            self._flush()
            raise
        self.pending.add(reader.take())
        self._flush()

    def _share(self, work: list[FoundFile], engine: Engine) -> tuple[SetAside, ...]:
        """Have an engine read and encode, and return what it has set aside."""
        manifest, folder = self.store.manifest, str(self.store.folder)
        units = units_of(
            [self._task(file) for file in work],
            self._known_of,
            engine.most_workers(len(work)),
            suspects={aside.unit for aside in read_set_aside(folder)},
        )
        num_workers = engine.most_workers(len(units))
        job = IndexWork(
            source=manifest.model,
            identity=manifest.identity,
            folder=folder,
            dim=manifest.dim,
            options=self.options,
            num_pictures=estimated_pictures(work) // num_workers,
            examples=tuple(islice((file for file in work if file.kind == "picture"), _EXAMPLES)),
        )
        # The store holds the folder for as long as it is written to.
        with Run(engine, folder, Hold()) as run, self._bar(len(work)) as bar:
            run.begin("indexing", num_units=len(units), called=GROUPS)
            try:
                run.do(job, units, _Entering(self, bar))
            except (KeyboardInterrupt, ValueError):
                self._flush()
                raise
            self._flush()
            return run.set_aside

    def _known_of(self, file: FoundFile) -> KnownContent:
        """Return what need not be encoded of a file: of a shard, what it held before, and shards as large as it is."""
        if file.kind == "picture":
            return KnownContent(pictures={file.size: self.known.of_size(file.size)})
        alike = self.finished_of_size.get(file.size, [])
        if file.kind == "video":
            return KnownContent(videos=frozenset(row.sha256 for path in alike for row in self.rows_of[path]))
        hashes: dict[int, list[str]] = defaultdict(list)
        for path in {file.path, *alike}:
            for row in self.rows_of.get(path, []):
                if not row.problem:
                    hashes[row.size].append(row.sha256)
        return KnownContent(pictures=dict(hashes))

    def _bar(self, total: int) -> Progress:
        return Progress("indexing", total=total, unit="pictures", console=console(shown=self.options.show_progress))

    def _is_due(self, num_rows: int) -> bool:
        """Return whether it is time to write down what was found."""
        is_late = time.monotonic() - self.written > self.options.segment_seconds
        return num_rows >= self.options.segment_rows or (is_late and num_rows > 0)

    def enter(self, found: Findings) -> None:
        """Take what a worker has found, and write it down if it is time."""
        self.pending.add(found)
        if self._is_due(self.pending.num_rows):
            self._flush()

    def _flush(self) -> None:
        """Write down what was found."""
        found, self.pending = self.pending, Findings()
        copies = [row for one in found.recognised for row in self._copies(one)]
        rows = [*found.rows, *copies]
        self.counts["encoded"] += found.num_encoded
        self.counts["known"] += sum(row.problem is None for row in copies)
        self.counts["unchanged"] += found.num_unchanged
        self.unreadable += found.unreadable
        self.uninstalled.update(found.uninstalled)
        tables = [unpacked(table) for table in found.tables]
        renewed = chain(((row.path, row.part) for row in rows), _names(tables), found.gone)
        removed = [place for path, part in renewed for place in self._replaced(path, part)]
        self.store.append(rows, tables=tables, removed=removed, finished=found.finished)
        self._mark.unlink(missing_ok=True)
        self.written = time.monotonic()

    def _replaced(self, path: str, part: str | None) -> list[Place]:
        """Return the places of the rows that are replaced by one of this name, once."""
        if path not in self.rows_of:
            return []
        if path not in self._to_replace:
            places: dict[str | None, list[Place]] = defaultdict(list)
            for row in self.rows_of[path]:
                places[row.part].append(row.place)
            self._to_replace[path] = dict(places)
        return self._to_replace[path].pop(part, [])

    def _copies(self, one: Recognised) -> list[Row]:
        """Return the rows of a picture or a video whose content is in the index already."""
        if one.file.kind != "video":
            return [self._copied(one, self.place_of_hash[one.sha256])]
        return [self._copied(one, row.place) for row in self.rows_of[self.video_of_hash[one.sha256]]]

    def _copied(self, one: Recognised, place: Place) -> Row:
        name, number = place
        if name not in self._loaded:
            if len(self._loaded) == _MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            segment = next(one for one in self.store.manifest.segments if one.name == name)
            table = read_segment(self.store.folder, segment, self.store.manifest.dim)
            self._loaded[name] = table.select(COLUMNS), vectors_of(table, self.store.manifest.dim)
        rows, vectors = self._loaded[name]
        known = rows.slice(number, 1).to_pylist()[0] | {
            "path": one.file.path,
            "part": one.part,
            "mtime_ns": one.file.mtime_ns,
        }
        del known["id"]
        return Row(embedding=vectors[number], **known)


class _Entering(Listener[IndexUnit, Findings]):
    """Enters into the index what workers find."""

    def __init__(self, job: _Update, bar: Progress) -> None:
        self._job, self._bar = job, bar

    def advanced(self, count: int) -> None:
        """Show how fast pictures are read; a file counts when it is done."""
        self._bar.advance(0, count=count)

    def finished(self, unit: IndexUnit, entry: Findings) -> None:
        """Enter it."""
        self._job.enter(entry)
        self._bar.advance(len(unit.tasks), count=0)

    def gave_up(self, unit: IndexUnit, aside: SetAside) -> None:  # noqa: ARG002 - as a `Listener` does
        """Show that no more is done for it."""
        self._bar.advance(len(unit.tasks), count=0)


def _names(tables: Sequence[pa.Table]) -> Iterator[tuple[str, str | None]]:
    for table in tables:
        yield from zip(table["path"].to_pylist(), table["part"].to_pylist(), strict=True)

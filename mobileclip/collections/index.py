"""Updates an index: encodes new files, recognises moved files, and removes deleted files."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import attrs

from mobileclip.collections.known import KnownFiles, KnownRow
from mobileclip.collections.metadata import ModelSource
from mobileclip.collections.read import FileReader, FileTask, Findings, IndexOptions, KnownContent
from mobileclip.collections.scan import FoundFile, Presence, Scan, estimated_images, is_inside
from mobileclip.collections.store import Store
from mobileclip.data import LostProcessError, Skip
from mobileclip.encoders import is_export
from mobileclip.engines import (
    Engine,
    Listener,
    LocalEngine,
    OnProgress,
    Retries,
    SetAside,
    Work,
    Worker,
    WorkerResources,
    held,
    read_set_aside,
    write_set_aside,
)
from mobileclip.inference import ImageTextModel, ModelIdentity, select_backend
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger


@attrs.frozen(kw_only=True)
class IndexReport:
    """The report of an index update: numbers of encoded, unchanged, moved, removed and unreadable images.

    Args:
        num_encoded: number of encoded new or changed images.
        num_known: number of images whose content was already in the index, in new or changed files (moved, copied and
            touched files, for example).
        num_unchanged: number of unchanged images, which the update did not read again.
        num_removed: number of deleted or moved images.
        num_unreadable: number of unchanged files that an earlier update could not read.
        unreadable: message for each new or changed file that this update could not read.
        uninstalled: number of files that need a missing extra, by installation command; every run tries these files
            again.
        left_out: skipped files of the folders (hidden, or of other types), with reasons.
        set_aside: files that failed in a worker of an engine; the next run tries these files again.
        missing: number of images that the index keeps, for each missing or empty folder and each missing file.
    """

    num_encoded: int
    num_known: int
    num_unchanged: int
    num_removed: int
    num_unreadable: int
    unreadable: tuple[str, ...]
    uninstalled: Mapping[str, int]
    left_out: tuple[Skip, ...]
    set_aside: tuple[SetAside, ...] = ()
    missing: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def num_left_out(self) -> int:
        """Number of newly unreadable files, failed files, and missing inputs or folders."""
        return len(self.unreadable) + len(self.set_aside) + len(self.missing)

    def __str__(self) -> str:
        """Return the report as one line."""
        parts = [f"{self.num_encoded:,} encoded"]
        parts += [f"{self.num_known:,} recognised by content"] if self.num_known else []
        parts += [f"{self.num_unchanged:,} unchanged"] if self.num_unchanged else []
        parts += [f"{self.num_removed:,} removed or moved away"] if self.num_removed else []
        unreadable = self.num_unreadable + len(self.unreadable)
        parts += [f"{unreadable:,} cannot be read"] if unreadable else []
        parts += [f"{sum(self.uninstalled.values()):,} need an extra"] if self.uninstalled else []
        parts += [f"{len(self.set_aside):,} set aside"] if self.set_aside else []
        kept = sum(self.missing.values())
        parts += [f"{kept:,} kept from missing folders"] if kept else []
        return ", ".join(parts)


MARK = "reading"
"""Name of an empty marker file: a job that reads in its own process creates the file, and deletes it after the first
write."""


class FindingsWriter:
    """Collects and counts findings, and writes the findings to an index at intervals.

    Args:
        store: store of the index, locked by the caller.
        known: rows of the index, by file.
        options: indexing options, for the intervals between writes.
    """

    def __init__(self, store: Store, known: KnownFiles, options: IndexOptions) -> None:
        self._store, self._known, self._options = store, known, options
        self.mark = store.folder / MARK
        self.pending = Findings()
        self.written = Findings()
        self.num_known = 0
        self.recognised: set[str] = set()
        self.start_clock()

    def start_clock(self) -> None:
        """Restart the interval until the next write."""
        self._written = time.monotonic()

    def is_due(self, num_rows: int) -> bool:
        """Return whether a write is due for a number of pending rows."""
        is_late = time.monotonic() - self._written > self._options.segment_seconds
        return num_rows >= self._options.segment_rows or (is_late and num_rows > 0)

    def add(self, found: Findings) -> None:
        """Add findings, and write all pending findings if a write is due.

        Raises:
            OSError: if the index cannot be written.
        """
        self.pending.add(found)
        if self.is_due(self.pending.num_rows):
            self.flush()

    def flush(self) -> None:
        """Write all pending findings.

        Raises:
            OSError: if the index cannot be written.
        """
        found, self.pending = self.pending, Findings()
        self.recognised |= {one.sha256 for one in found.recognised}
        copies = self._known.copies(found.recognised)
        rows = [*found.rows, *copies]
        self.num_known += sum(row.problem is None for row in copies)
        renewed = chain(((row.path, row.part) for row in rows), found.gone)
        removed = [number for path, part in renewed for number in self._known.take_replaced(path, part)]
        self._store.append(rows, removed=removed, finished=found.finished)
        # Keep only counts and reasons for the report, as the rows are written.
        self.written.add(attrs.evolve(found, rows=[], recognised=[], gone=[], finished=[]))
        self.mark.unlink(missing_ok=True)
        self.start_clock()


# Limits on the number of images per group (a few seconds of work). Within these limits, a worker has eight groups.
_MOST_IMAGES, _LEAST_IMAGES = 256, 16
_GROUPS_A_WORKER = 8


@attrs.frozen(kw_only=True, eq=False)
class IndexUnit:
    """A group of files for one worker.

    Args:
        name: name of the first file, with the number of other files.
        tasks: files to read.
        known: hashes of content that already has embeddings.
    """

    name: str
    tasks: tuple[FileTask, ...]
    known: KnownContent


def units_of(
    tasks: Sequence[FileTask],
    known_of: Callable[[FoundFile], KnownContent],
    num_workers: int,
    suspects: Collection[str] = (),
) -> list[IndexUnit]:
    """Group files into units; a unit has at most 256 images, or one shard, or one video.

    Args:
        tasks: files to group.
        known_of: function that returns the indexed content that a file may have.
        num_workers: number of workers.
        suspects: paths of images that failed earlier; each of these images gets a separate unit.
    """
    images = [task for task in tasks if task.file.kind == "image" and task.file.path not in suspects]
    share = -(-len(images) // (_GROUPS_A_WORKER * num_workers))
    size = min(max(share, _LEAST_IMAGES), _MOST_IMAGES)
    groups = [tuple(images[start : start + size]) for start in range(0, len(images), size)]
    groups += [(task,) for task in tasks if task.file.kind != "image" or task.file.path in suspects]
    return [_unit(group, known_of) for group in groups]


def _unit(group: tuple[FileTask, ...], known_of: Callable[[FoundFile], KnownContent]) -> IndexUnit:
    known = [known_of(task.file) for task in group]
    return IndexUnit(
        name=_name(group),
        tasks=group,
        known=KnownContent(
            images={size: hashes for one in known for size, hashes in one.images.items()},
            videos=frozenset(sha256 for one in known for sha256 in one.videos),
        ),
    )


def _name(group: Sequence[FileTask]) -> str:
    first, num_others = group[0].file.path, len(group) - 1
    return f"{first} and {num_others:,} other{'s' if num_others > 1 else ''}" if num_others else first


@attrs.frozen(kw_only=True, eq=False)
class IndexWork(Work[IndexUnit, Findings]):
    """Reads and encodes files in workers; the paths of files and model must be valid on all machines.

    Args:
        source: arguments to load the model.
        trust: see `update`.
        identity: identity of the model.
        folder: folder of the index, for messages.
        options: indexing options.
        num_images: approximate number of images per worker.
        examples: images for selecting a backend.
    """

    source: ModelSource
    trust: bool
    identity: ModelIdentity
    folder: str
    options: IndexOptions
    num_images: int
    examples: tuple[FoundFile, ...]

    def open(self, resources: WorkerResources) -> Worker[IndexUnit, Findings]:
        """Load the model, and select its fastest backend if there are enough images.

        Raises:
            ValueError, OSError: if the model cannot be loaded, or is not the model of the index.
        """
        device = "cpu" if is_export(self.source.checkpoint or self.source.model or "") else resources.device
        clip, identity = self.source.load(device, trust=self.trust)
        self.identity.require_same(identity, here=f"the index {self.folder}", there="the source of a worker's model")
        examples = (Path(file.path) for file in self.examples)
        clip = select_backend(clip, examples, self.num_images, precision=self.options.precision, show_progress=False)
        return partial(self._read, clip)

    def split(self, unit: IndexUnit) -> list[IndexUnit]:
        """Return the halves of a failing group of images; an empty list for a single file."""
        middle = len(unit.tasks) // 2
        halves = (unit.tasks[:middle], unit.tasks[middle:]) if middle else ()
        return [attrs.evolve(unit, name=_name(half), tasks=half) for half in halves]

    def _read(self, clip: ImageTextModel, unit: IndexUnit, on_progress: OnProgress, /) -> Callable[[], Findings]:
        reader = FileReader(unit.tasks, unit.known, self.options)
        for _ in reader.read(clip, num_workers=1):
            on_progress(1)
        found = reader.take()
        return lambda: found


# A process takes seconds to start, which does not pay off for fewer images per process.
_IMAGES_PER_WORKER = 64
# Number of images for trying the backends of a model.
_EXAMPLES = 16


def useful_workers(num_workers: int, num_images: int) -> int:
    """Return the number of worker processes to start for images, at most `num_workers`; 1 starts none."""
    return min(num_workers, 1 + num_images // _IMAGES_PER_WORKER)


@attrs.frozen(kw_only=True, eq=False)
class FileEncoder:
    """Reads and encodes files, and writes the results to the index.

    Args:
        store: store of the index, locked by the caller.
        known: rows of the index, by file.
        writer: writer of the findings.
        options: indexing options.
        trust: see `update`.
    """

    store: Store
    known: KnownFiles
    writer: FindingsWriter
    options: IndexOptions
    trust: bool = False

    def encode_here(self, files: Sequence[FoundFile], clip: ImageTextModel) -> None:
        """Read files and encode images in this process; with several workers, separate processes decode the images.

        Args:
            files: files to read.
            clip: model of the index.

        Raises:
            LostProcessError: if a decoding process dies; the index keeps finished images.
            OSError: if the index cannot be written.
        """
        options, writer, num_about = self.options, self.writer, estimated_images(files)
        clip = select_backend(
            clip,
            (Path(file.path) for file in files if file.kind == "image"),
            num_about,
            precision=options.precision,
            show_progress=options.show_progress,
        )
        tasks = [self.known.task(file) for file in files]
        reader = FileReader(tasks, self.known.content(), options)
        num_workers = useful_workers(options.num_workers, num_about)
        writer.start_clock()
        try:
            with self._bar(num_about) as bar:
                for _ in reader.read(clip, num_workers):
                    # The current file may hold more images than expected.
                    is_more = bar.done >= reader.num_expected
                    bar.expect(bar.done + 2 if is_more else reader.num_expected)
                    bar.advance()
                    if writer.is_due(reader.findings.num_rows):
                        writer.add(reader.take())
        except (KeyboardInterrupt, ValueError):
            writer.add(reader.take())
            writer.flush()
            raise
        writer.add(reader.take())
        writer.flush()

    def share(self, files: Sequence[FoundFile], engine: Engine) -> tuple[SetAside, ...]:
        """Read and encode files with an engine, and return the failed files.

        Args:
            files: files to read.
            engine: engine that runs the workers; each worker loads the model.

        Raises:
            ValueError: if no worker can start.
            OSError: if the index cannot be written.
        """
        about = self.store.about
        units = units_of(
            [self.known.task(file) for file in files],
            self.known.content_like,
            engine.most_workers(len(files)),
            suspects=self.suspects(),
        )
        job = IndexWork(
            source=about.model,
            trust=self.trust,
            identity=about.identity,
            folder=str(self.store.folder),
            options=self.options,
            num_images=estimated_images(files) // engine.most_workers(len(units)),
            examples=tuple(islice((file for file in files if file.kind == "image"), _EXAMPLES)),
        )
        # The store already holds the lock of the folder.
        with held(job.folder, engine, is_held=True) as run, self._bar(len(files)) as bar:
            run.begin("indexing", num_units=len(units), unit_name="groups of files")
            try:
                run.do(job, units, _Entering(self.writer, bar))
            except (KeyboardInterrupt, ValueError):
                self.writer.flush()
                raise
            self.writer.flush()
            return run.set_aside

    def suspects(self) -> set[str]:
        """Return the paths of files that failed in earlier runs."""
        return {aside.unit for aside in read_set_aside(self.store.folder)}

    def _bar(self, total: int) -> Progress:
        return Progress("indexing", total=total, unit="images", console=console(shown=self.options.show_progress))


class _Entering(Listener[IndexUnit, Findings]):
    """Writes the workers' findings to the index."""

    def __init__(self, writer: FindingsWriter, bar: Progress) -> None:
        self._writer, self._bar = writer, bar

    def advanced(self, count: int) -> None:
        """Update the progress bar's number of images per second."""
        self._bar.advance(0, count=count)

    def finished(self, unit: IndexUnit, entry: Findings) -> None:
        """Add the findings of a unit."""
        self._writer.add(entry)
        self._bar.advance(len(unit.tasks), count=0)

    def gave_up(self, unit: IndexUnit, aside: SetAside) -> None:  # noqa: ARG002 - as a `Listener` does
        """Advance the progress bar past a failed unit."""
        self._bar.advance(len(unit.tasks), count=0)


logger = get_logger(__name__)

# Maximum number of processes, each with a model, after the loss of a decoding process.
_MOST_APART = 4
_AT_ONCE = Retries(tries=2, pause_seconds=0.0)


def update(
    store: Store,
    clip: Callable[[], ImageTextModel],
    found: Scan,
    options: IndexOptions,
    engine: Engine | None = None,
    *,
    trust: bool = False,
) -> IndexReport:
    """Update an index with the files of a scan; the caller must hold the index's lock.

    The update writes every few seconds, so a killed job loses only seconds of work.

    Args:
        store: store of the index.
        clip: function that returns the index's model; `update` calls the function only if there are files to
            encode and `engine` is None.
        found: result of `scan`.
        options: indexing options.
        engine: engine that runs the workers; None to encode in this process.
        trust: whether workers may open an exported model from another machine, see `mobileclip.load`.

    Raises:
        OSError: if the index cannot be written.
        ValueError: if a decoding process dies, or no worker can start.
    """
    known = KnownFiles(store)
    writer = FindingsWriter(store, known, options)
    work: list[FoundFile] = []
    kept: list[KnownRow] = []
    outdated: list[int] = []
    for file in found.files.values():
        if known.is_as_before(file):
            kept += [row for row in known.rows(file.path) if row.mtime_ns == file.mtime_ns]
            # After a merge, the index may have rows of a shard's earlier content.
            outdated += [row.id for row in known.rows(file.path) if row.mtime_ns != file.mtime_ns]
        else:
            work.append(file)
    store.append(inputs=found.inputs)
    set_aside: tuple[SetAside, ...] = ()
    if work:
        store.note_decode(options.decode)
        encoder = FileEncoder(store=store, known=known, writer=writer, options=options, trust=trust)
        set_aside = encoder.share(work, engine) if engine is not None else _encode_apart_if_lost(encoder, work, clip)
    else:
        writer.mark.unlink(missing_ok=True)  # left by a job that was killed after its last write
    gone, missing = known.gone(found, writer.recognised)
    # A missing folder has moved if all its readable files were found elsewhere; the index also drops its other files.
    moved = [one for one in found.missing if not missing[one] and not Path(one).exists()]
    gone += [path for folder in moved for path in known.below(folder) if path not in gone]
    removed = [row.id for path in gone for row in known.rows(path)] + outdated
    store.append(removed=removed)
    store.forget(gone, inputs=moved)
    store.compact()
    _forget_set_aside(store, found)
    num_unreadable = sum(row.is_problem for row in kept)
    return IndexReport(
        num_encoded=writer.written.num_encoded,
        num_known=writer.num_known,
        num_unchanged=writer.written.num_unchanged + len(kept) - num_unreadable,
        num_removed=len(removed),
        num_unreadable=num_unreadable,
        unreadable=tuple(dict.fromkeys(writer.written.unreadable)),
        uninstalled=dict(writer.written.uninstalled),
        left_out=found.left_out,
        set_aside=set_aside,
        missing={place: count for place, count in missing.items() if place not in moved},
    )


def forget(store: Store, folders: Sequence[str]) -> int:
    """Remove folders from an index, and return the number of removed images; the caller must hold the index's lock.

    Args:
        store: store of the index.
        folders: absolute paths of folders, files or shards.

    Raises:
        ValueError: if the index has no images of a folder, or the next update would index the folder again as part of
            a larger input.
        OSError: if the index cannot be written.
    """
    known, before, there = KnownFiles(store), store.inputs, Presence()
    for folder in folders:
        around = [one for one in before if one != folder and is_inside(folder, one)]
        if around and any(path in there for path in known.below(folder)):
            raise ValueError(
                f"{folder} is part of the index's input {around[0]}, and the next update would index the images again; "
                "forget the whole input instead"
            )
        if not known.below(folder) and not any(is_inside(one, folder) for one in before):
            raise ValueError(
                f"the index has no images of {folder}; inputs of the index: {', '.join(before) or 'nothing'}"
            )
    inputs = [one for one in before if any(is_inside(one, folder) for folder in folders)]
    gone = list(dict.fromkeys(path for folder in folders for path in known.below(folder)))
    rows = [row for path in gone for row in known.rows(path)]
    store.append(removed=[row.id for row in rows])
    store.forget(gone, inputs=inputs)
    store.compact()
    return sum(not row.is_problem for row in rows)


def _encode_apart_if_lost(
    encoder: FileEncoder, work: Sequence[FoundFile], clip: Callable[[], ImageTextModel]
) -> tuple[SetAside, ...]:
    """Read and encode files in this process, and return the failed files.

    Reading a damaged file may kill the process. If a decoding process dies, or an earlier job was killed before its
    first write, the function reads the remaining files in worker processes, to isolate the damaged file.
    """
    mark, suspects = encoder.writer.mark, encoder.suspects()
    if mark.exists():
        logger.warning("the last run was killed before its first write; worker processes now read the files")
        suspects = {file.path for file in work}
    apart = [file for file in work if file.path in suspects]
    here = [file for file in work if file.path not in suspects]
    try:
        mark.touch()
        if here:
            encoder.encode_here(here, clip())
    except LostProcessError as error:
        logger.warning("%s. Worker processes now read the remaining files", str(error).partition(":")[0])
        # Some results are already written.
        encoder.known.look_up()
        apart = [file for file in work if not encoder.known.is_as_before(file)]
    finally:
        mark.unlink(missing_ok=True)
    return encoder.share(apart, _engine_apart(clip(), encoder.options)) if apart else ()


def _engine_apart(clip: ImageTextModel, options: IndexOptions) -> LocalEngine:
    """Return an engine with few processes, since each process loads the model."""
    device = str(next(clip.model.parameters()).device)
    num_workers = min(options.num_workers, _MOST_APART)
    return LocalEngine(num_workers=num_workers, devices=(device,), apart=True, retries=_AT_ONCE)


def _forget_set_aside(store: Store, found: Scan) -> None:
    """Remove deleted files from the list of failed files."""
    listed = read_set_aside(store.folder)
    kept = [one for one in listed if one.unit in found.files or not found.covers(one.unit)]
    if kept != list(listed):
        write_set_aside(store.folder, kept)

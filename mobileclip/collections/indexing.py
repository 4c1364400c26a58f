"""An index brought up to date: what is new is encoded, what moved is recognised, what is gone is dropped."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.manifest import FinishedFile
from mobileclip.collections.pictures import picture_in
from mobileclip.collections.quickening import WORTH_TRYING, quickened
from mobileclip.collections.scanning import FoundFile, Scan
from mobileclip.collections.segments import COLUMNS, Row, read_segment, vectors_of
from mobileclip.collections.store import Place, Store
from mobileclip.data.images.limits import ImageError
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.hardware.precision import WidePrecision
from mobileclip.inference.encoding import Encoded, Picture, encode_pictures
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.progress import Progress
from mobileclip.strict import strict
from mobileclip.terminal import console

if TYPE_CHECKING:
    import pyarrow as pa

# A process takes seconds to start, and is not worth it for fewer.
_EACH = 64
# They go to another process with every picture of that size.
_MOST_HASHES = 100
# Segments in memory, of up to 100 MB, that embeddings of known pictures are copied from.
_MOST_LOADED = 4
# What may be otherwise next time, although the file is as it was.
_PASSING = frozenset(("unreadable", "out_of_memory"))
_LOOKUP = ("path", "part", "size", "mtime_ns", "sha256", "problem")


@attrs.frozen(kw_only=True, field_transformer=strict)
class IndexOptions:
    """How pictures are indexed.

    Args:
        batch_size: pictures encoded at once.
        num_workers: processes that read and decode beside the model; one reads in this process.
        decode: `fast` decodes a JPEG no larger than the model needs, see `read_tower_image`; `exact` decodes all of it.
        precision: what an image tower on a CPU may compute in, as far as `mobileclip.optimize` finds it exact enough.
        segment_rows: pictures after which what is finished is written down.
        segment_seconds: after which it is written down as well.
        show_progress: whether to show how far it is.
    """

    batch_size: int = attrs.field(default=32, validator=validators.gt(0))
    num_workers: int = attrs.field(default=1, validator=validators.gt(0))
    decode: Literal["fast", "exact"] = "fast"
    precision: WidePrecision = "bfloat16"
    segment_rows: int = attrs.field(default=4096, validator=validators.gt(0))
    segment_seconds: float = attrs.field(default=10.0, validator=validators.gt(0))
    show_progress: bool = True


@attrs.frozen(kw_only=True)
class IndexReport:
    """What became of the pictures.

    Args:
        num_encoded: new or changed ones.
        num_known: of new files or changed ones whose content had an embedding: moved files, copies, and files that
            were touched.
        num_unchanged: that were not looked at again.
        num_removed: that are gone, or moved.
        num_unreadable: files that could not be read before, and have not changed.
        unreadable: why each file that could not be read now was not, naming it.
        uninstalled: what must be installed for other files, with the command that does, and how many files these are;
            they are tried again each time.
        left_out: files of folders that are no pictures.
    """

    num_encoded: int
    num_known: int
    num_unchanged: int
    num_removed: int
    num_unreadable: int
    unreadable: tuple[str, ...]
    uninstalled: Mapping[str, int]
    left_out: tuple[Skip, ...]

    def __str__(self) -> str:
        """Say it in a line."""
        parts = [f"{self.num_encoded:,} encoded"]
        parts += [f"{self.num_known:,} recognised by their content"] if self.num_known else []
        parts += [f"{self.num_unchanged:,} as before"] if self.num_unchanged else []
        parts += [f"{self.num_removed:,} gone from where they were"] if self.num_removed else []
        unreadable = self.num_unreadable + len(self.unreadable)
        parts += [f"{unreadable:,} cannot be read"] if unreadable else []
        parts += [f"{sum(self.uninstalled.values()):,} wait for an extra"] if self.uninstalled else []
        return ", ".join(parts)


@attrs.frozen(kw_only=True)
class _KnownRow:
    place: Place
    part: str | None
    size: int
    mtime_ns: int
    problem: bool


@attrs.frozen(kw_only=True)
class _Wanted:
    """A picture that is asked for: the file it is in, and its part of it."""

    file: FoundFile
    part: str | None = None


def update(store: Store, clip: Callable[[], ImageTextModel], found: Scan, options: IndexOptions) -> IndexReport:
    """Bring an index up to date with the files that were found; whoever calls it holds the index.

    What is finished is written down every few seconds, so that a job that is killed loses no more than these.

    Args:
        store: of the index.
        clip: gives the model that it is of; not called where nothing is to be encoded.
        found: the files.
        options: how.

    Raises:
        OSError: if the index cannot be written.
        ValueError: if a process that decodes ends abruptly.
    """
    return _Update(store, clip, found, options).run()


class _Update:
    """One run of `update`, and what it knows so far."""

    def __init__(self, store: Store, clip: Callable[[], ImageTextModel], found: Scan, options: IndexOptions) -> None:
        self.store, self.clip, self.found, self.options = store, clip, found, options
        self.rows_of: dict[str, list[_KnownRow]] = defaultdict(list)
        self.hashes_of_size: dict[int, list[str]] = defaultdict(list)
        self.place_of_hash: dict[str, Place] = {}
        self._look_up()
        self.unreadable: list[str] = []
        self.uninstalled: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.read_to_end: dict[str, FoundFile] = {}
        self.pending: list[Row] = []
        self.replaced: list[Place] = []
        self._loaded: dict[str, tuple[pa.Table, NDArray[np.float16]]] = {}

    def run(self) -> IndexReport:
        """Do what has to be done, and say what was."""
        files = self.found.files
        work = [file for file in files.values() if not self._is_as_before(file)]
        self.store.remember(self.found.inputs)
        if work:
            self._encode(work)
        gone = [path for path in self.rows_of if path not in files and self.found.covers(path)]
        removed = [row.place for path in gone for row in self.rows_of[path]]
        self.store.append((), removed=removed)
        self.store.forget(gone)
        self.store.merge()
        return IndexReport(
            num_encoded=self.counts["encoded"],
            num_known=self.counts["known"],
            num_unchanged=self.counts["unchanged"],
            num_removed=len(removed),
            num_unreadable=self.counts["unreadable before"],
            unreadable=tuple(self.unreadable),
            uninstalled=dict(self.uninstalled),
            left_out=self.found.left_out,
        )

    def _look_up(self) -> None:
        """Enter what the index knows of files."""
        for segment, table in self.store.read(_LOOKUP):
            removed = set(segment.removed)
            columns = (table[name].to_pylist() for name in _LOOKUP)
            for number, (path, part, size, mtime_ns, sha256, problem) in enumerate(zip(*columns, strict=True)):
                if number in removed:
                    continue
                place = (segment.name, number)
                row = _KnownRow(place=place, part=part, size=size, mtime_ns=mtime_ns, problem=problem is not None)
                self.rows_of[path].append(row)
                if problem is None and sha256 not in self.place_of_hash:
                    self.place_of_hash[sha256] = place
                    self.hashes_of_size[size].append(sha256)
        self.finished = {one.path: one for one in self.store.manifest.finished}

    def _is_as_before(self, file: FoundFile) -> bool:
        """Return whether nothing has to be read of a file, and count what it holds."""
        known = self.rows_of.get(file.path, [])
        if file.is_shard:
            before = self.finished.get(file.path)
            is_same = before is not None and (before.num_bytes, before.mtime_ns) == (file.size, file.mtime_ns)
        else:
            is_same = [(row.size, row.mtime_ns) for row in known] == [(file.size, file.mtime_ns)]
        if is_same:
            num_problems = sum(row.problem for row in known)
            self.counts["unreadable before"] += num_problems
            self.counts["unchanged"] += len(known) - num_problems
        return is_same

    def _encode(self, work: list[FoundFile]) -> None:
        options = self.options
        total = None if any(file.is_shard for file in work) else len(work)
        clip = quickened(
            self.clip(),
            work,
            WORTH_TRYING if total is None else total,
            precision=options.precision,
            show_progress=options.show_progress,
        )
        encoded = encode_pictures(
            clip,
            self._pictures(work),
            reduced=options.decode == "fast",
            batch_size=options.batch_size,
            num_workers=options.num_workers if total is None else min(options.num_workers, 1 + total // _EACH),
        )
        shown = console(shown=options.show_progress and bool(work))
        written = time.monotonic()
        try:
            with Progress("indexing", total=total, unit="pictures", console=shown) as bar:
                for one in encoded:
                    self._enter(one)
                    bar.advance()
                    is_late = time.monotonic() - written > options.segment_seconds
                    if len(self.pending) >= options.segment_rows or (is_late and self.pending):
                        self._flush()
                        written = time.monotonic()
        except KeyboardInterrupt:
            self._flush()
            raise
        self._flush()

    def _pictures(self, work: Iterable[FoundFile]) -> Iterator[Picture[_Wanted]]:
        for file in work:
            if file.is_shard:
                yield from self._pictures_of_shard(file)
            else:
                known = self._known_hashes(file.size)
                yield Picture(key=_Wanted(file=file), name=file.path, source=Path(file.path), known=known)

    def _pictures_of_shard(self, file: FoundFile) -> Iterator[Picture[_Wanted]]:
        """Yield the pictures of a shard, but for those that a job has entered which did not come to its end."""
        done = {row.part for row in self.rows_of.get(file.path, []) if row.mtime_ns == file.mtime_ns}
        skips = SkipReport(log=False)
        seen: set[str] = set()
        for raw in read_shard(file.path, skips.add):
            image = picture_in(raw)
            if image is None or raw.problem is not None or raw.key in seen:
                detail = "no picture in it" if raw.problem is None else raw.problem.detail
                skips.add(Skip(reason="no_image", key=raw.key, shard=file.path, detail=detail))
                continue
            seen.add(raw.key)
            if raw.key in done:
                self.counts["unchanged"] += 1
                continue
            self.asked[file.path] += 1
            yield Picture(
                key=_Wanted(file=file, part=raw.key),
                name=f"{file.path}/{raw.key}",
                source=image,
                known=self._known_hashes(len(image)),
            )
        self.unreadable += [
            f"{skip.key} of {skip.shard}: {skip.detail}" for named in skips.named.values() for skip in named
        ]
        # What a shard held before and does not hold now.
        self.replaced += [row.place for row in self.rows_of.get(file.path, []) if row.part not in seen]
        self.read_to_end[file.path] = file

    def _enter(self, one: Encoded[_Wanted]) -> None:
        wanted, read = one.picture.key, one.read
        file = wanted.file
        self.answered[file.path] += 1
        if isinstance(read, ImageError):
            if read.reason == "missing_file":
                return  # removed since it was found
            if read.reason == "missing_package":
                self.uninstalled[read.install] += 1
                return
            self.unreadable.append(read.message)
            if read.reason in _PASSING:
                return
            self.pending.append(
                Row(
                    path=file.path,
                    part=wanted.part,
                    size=file.size,
                    mtime_ns=file.mtime_ns,
                    sha256="",
                    problem=storage.printable(read.message),
                    embedding=np.zeros(self.store.manifest.dim, np.float32),
                )
            )
        elif one.embedding is None:
            self.counts["known"] += 1
            self.pending.append(self._copied(wanted, read.sha256))
        else:
            self.counts["encoded"] += 1
            notes = attrs.asdict(read.notes)
            self.pending.append(
                Row(
                    path=file.path,
                    part=wanted.part,
                    size=read.num_bytes,
                    mtime_ns=file.mtime_ns,
                    sha256=read.sha256,
                    width=read.width,
                    height=read.height,
                    embedding=one.embedding,
                    **notes,
                )
            )
        self.replaced += [row.place for row in self.rows_of.get(file.path, []) if row.part == wanted.part]

    def _copied(self, wanted: _Wanted, sha256: str) -> Row:
        """Return the row of a picture whose content is in the index already."""
        name, number = self.place_of_hash[sha256]
        if name not in self._loaded:
            if len(self._loaded) == _MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            segment = next(one for one in self.store.manifest.segments if one.name == name)
            table = read_segment(self.store.folder, segment, self.store.manifest.dim)
            self._loaded[name] = table.select(COLUMNS), vectors_of(table, self.store.manifest.dim)
        rows, vectors = self._loaded[name]
        known = rows.slice(number, 1).to_pylist()[0] | {
            "path": wanted.file.path,
            "part": wanted.part,
            "mtime_ns": wanted.file.mtime_ns,
        }
        del known["id"]
        return Row(embedding=vectors[number], **known)

    def _known_hashes(self, size: int) -> tuple[str, ...]:
        """Return hashes that a picture of so many bytes may have; of very many of one size, some."""
        return tuple(self.hashes_of_size.get(size, ())[:_MOST_HASHES])

    def _flush(self) -> None:
        ends = [
            FinishedFile(path=path, num_bytes=file.size, mtime_ns=file.mtime_ns)
            for path, file in self.read_to_end.items()
            if self.asked[path] == self.answered[path]
        ]
        self.store.append(self.pending, removed=self.replaced, finished=ends)
        for end in ends:
            del self.read_to_end[end.path]
        self.pending, self.replaced = [], []

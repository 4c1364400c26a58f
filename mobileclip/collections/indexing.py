"""An index brought up to date: what is new is encoded, what moved is recognised, what is gone is dropped."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.manifest import FinishedFile
from mobileclip.collections.options import IndexOptions, IndexReport
from mobileclip.collections.pictures import picture_in
from mobileclip.collections.quickening import WORTH_TRYING, quickened
from mobileclip.collections.scanning import FoundFile, Scan
from mobileclip.collections.segments import COLUMNS, Row, read_segment, vectors_of
from mobileclip.collections.store import Place, Store
from mobileclip.collections.videos import SceneChooser, hash_file, look_at_video
from mobileclip.data.images.camera_notes import CameraNotes
from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import Pixels
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.data.videos.formats import is_video_name
from mobileclip.inference.encoding import Encoded, Moment, Picture, PictureRead, encode_pictures
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.progress import Progress
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


@attrs.frozen(kw_only=True)
class _KnownRow:
    place: Place
    part: str | None
    size: int
    mtime_ns: int
    problem: bool


@attrs.frozen(kw_only=True)
class _Wanted:
    """A picture that is asked for: its file, and its part of it, or its time and what is known of its video."""

    file: FoundFile
    part: str | None = None
    time: float | None = None
    sha256: str = ""
    notes: CameraNotes = CameraNotes()


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
        self.video_of_hash: dict[str, str] = {}
        self.scenes = SceneChooser()
        self._look_up()
        self.unreadable: list[str] = []
        self.uninstalled: Counter[str] = Counter()
        self.torn: set[str] = set()
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
        self.finished = finished = {one.path: one for one in self.store.manifest.finished}
        for segment, table in self.store.read(_LOOKUP):
            removed = set(segment.removed)
            columns = (table[name].to_pylist() for name in _LOOKUP)
            for number, (path, part, size, mtime_ns, sha256, problem) in enumerate(zip(*columns, strict=True)):
                if number in removed:
                    continue
                place = (segment.name, number)
                row = _KnownRow(place=place, part=part, size=size, mtime_ns=mtime_ns, problem=problem is not None)
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

    def _encode(self, work: list[FoundFile]) -> None:
        options = self.options
        total = None if any(file.kind != "picture" for file in work) else len(work)
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
            choose=self._is_wanted if options.video_frames == "scenes" else None,
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
            if file.kind == "shard":
                yield from self._pictures_of_shard(file)
            elif file.kind == "video":
                yield from self._frames_of_video(file)
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

    def _frames_of_video(self, file: FoundFile) -> Iterator[Picture[_Wanted]]:
        """Yield the frames of a video; one that is known by its content has its rows copied."""
        path = Path(file.path)
        try:
            # This comes first: to hash a video that cannot be read may take minutes.
            facts = look_at_video(path, self.options.video_frames, self.options.video_seconds)
            sha256 = hash_file(path)
        except ImageError as error:
            if self._refuse(_Wanted(file=file), error):
                self.replaced += [row.place for row in self.rows_of.get(file.path, [])]
                self.read_to_end[file.path] = file
            return
        known = self.rows_of[self.video_of_hash[sha256]] if sha256 in self.video_of_hash else ()
        self.replaced += [row.place for row in self.rows_of.get(file.path, [])]
        self.pending += [self._copied(_Wanted(file=file), row.place) for row in known]
        self.counts["known"] += sum(not row.problem for row in known)
        for moment in () if known else facts.times:
            self.asked[file.path] += 1
            yield Picture(
                key=_Wanted(file=file, time=moment, sha256=sha256, notes=facts.notes),
                name=file.path,
                source=Moment(path=path, seconds=moment),
            )
        self.read_to_end[file.path] = file

    def _is_wanted(self, picture: Picture[_Wanted], pixels: Pixels) -> bool:
        return picture.key.time is None or self.scenes.is_new(picture.name, pixels)

    def _refuse(self, wanted: _Wanted, error: ImageError) -> bool:
        """Say why a file cannot be read, and return whether it will be so until the file changes."""
        file = wanted.file
        if error.reason == "missing_file":
            return False  # removed since it was found
        if error.reason == "missing_package":
            self.uninstalled[error.install] += 1
            return False
        self.unreadable.append(error.message)
        if error.reason in _PASSING:
            return False
        self.pending.append(
            Row(
                path=file.path,
                part=wanted.part,
                size=file.size,
                mtime_ns=file.mtime_ns,
                sha256=wanted.sha256,
                problem=storage.printable(error.message),
                embedding=np.zeros(self.store.manifest.dim, np.float32),
            )
        )
        return True

    def _enter(self, one: Encoded[_Wanted]) -> None:
        wanted, read = one.picture.key, one.read
        file = wanted.file
        self.answered[file.path] += 1
        if wanted.time is not None:
            self._enter_frame(wanted, one)
            return
        if isinstance(read, ImageError):
            if not self._refuse(wanted, read):
                return
        elif one.embedding is None:
            self.counts["known"] += 1
            self.pending.append(self._copied(wanted, self.place_of_hash[read.sha256]))
        else:
            self._add(wanted, read, one.embedding, size=read.num_bytes, sha256=read.sha256, notes=read.notes)
        self.replaced += [row.place for row in self.rows_of.get(file.path, []) if row.part == wanted.part]

    def _enter_frame(self, wanted: _Wanted, one: Encoded[_Wanted]) -> None:
        file, read = wanted.file, one.read
        if isinstance(read, ImageError):
            # Whatever else cannot be read of it, a video is named once.
            if file.path not in self.torn:
                self.torn.add(file.path)
                if not self._refuse(wanted, read):
                    self.asked[file.path] += 1  # it is not finished
        elif one.embedding is not None:
            self._add(wanted, read, one.embedding, size=file.size, sha256=wanted.sha256, notes=wanted.notes)

    def _add(
        self,
        wanted: _Wanted,
        read: PictureRead,
        embedding: NDArray[np.float32],
        *,
        size: int,
        sha256: str,
        notes: CameraNotes,
    ) -> None:
        """Add the row of a picture that was encoded."""
        self.counts["encoded"] += 1
        self.pending.append(
            Row(
                path=wanted.file.path,
                part=wanted.part,
                size=size,
                mtime_ns=wanted.file.mtime_ns,
                sha256=sha256,
                width=read.width,
                height=read.height,
                time=wanted.time,
                embedding=embedding,
                **attrs.asdict(notes),
            )
        )

    def _copied(self, wanted: _Wanted, place: Place) -> Row:
        """Return the row of a picture whose content is in the index already.

        Args:
            wanted: the picture.
            place: of the row that is there.
        """
        name, number = place
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

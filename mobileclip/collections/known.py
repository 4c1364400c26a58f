"""Looks up indexed files by path, and indexed images and videos by the hash of their content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import attrs

from mobileclip.collections.metadata import FinishedFile
from mobileclip.collections.read import FileTask, KnownContent, Recognised
from mobileclip.collections.scan import FoundFile, MissingFolders, Presence, Scan, is_inside
from mobileclip.collections.store import Row, Store
from mobileclip.datasets import is_video_name


@attrs.frozen(kw_only=True)
class KnownRow:
    """The fields of an index row that are needed to detect a changed file.

    Args:
        id: id of the row in the index.
        part: key of the sample in its shard; None for other files.
        size: size of the image or video, in bytes.
        mtime_ns: modification time of the file, in nanoseconds since 1970.
        sha256: SHA-256 of the image or video.
        is_problem: whether the file was unreadable.
    """

    id: int
    part: str | None
    size: int
    mtime_ns: int
    sha256: str
    is_problem: bool


class KnownFiles:
    """The rows of an index, by file, at the time of the last `look_up`.

    Args:
        store: store of the index.

    Raises:
        ValueError: if the index is damaged.
        OSError: if the index cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.look_up()

    def look_up(self) -> None:
        """Read the index's current rows.

        Raises:
            ValueError: if the index is damaged.
            OSError: if the index cannot be read.
        """
        self._rows: dict[str, list[KnownRow]] = defaultdict(list)
        self._replaceable: dict[str, dict[str | None, list[int]]] = {}
        self._hashes_of_size: dict[int, list[str]] = defaultdict(list)
        self._id_of_hash: dict[str, int] = {}
        self._video_of_hash: dict[str, str] = {}
        self._finished: dict[str, FinishedFile] = {}
        self._finished_of_size: dict[int, list[str]] = defaultdict(list)
        for one in self._store.finished:
            self._finished[one.path] = one
            self._finished_of_size[one.num_bytes].append(one.path)
        columns = ("id", "path", "part", "size", "mtime_ns", "sha256", "problem")
        for number, path, part, size, mtime_ns, sha256, problem in self._store.values(*columns):
            is_problem = problem is not None
            self._rows[path].append(
                KnownRow(id=number, part=part, size=size, mtime_ns=mtime_ns, sha256=sha256, is_problem=is_problem)
            )
            if is_video_name(path):
                # If a video was not read to its end, some frames are missing.
                if path in self._finished:
                    self._video_of_hash[sha256] = path
            elif not is_problem and sha256 not in self._id_of_hash:
                self._id_of_hash[sha256] = number
                self._hashes_of_size[size].append(sha256)

    def rows(self, path: str) -> Sequence[KnownRow]:
        """Return the rows of a file."""
        return self._rows.get(path, ())

    def gone(self, found: Scan, recognised: Collection[str] = ()) -> tuple[list[str], dict[str, int]]:
        """Return the deleted files, and the number of kept images for each missing folder.

        The index keeps existing files, even files that this scan skips (former inputs in hidden or linked folders, for
        example). The index also keeps the files of a missing or empty folder (an unmounted disk, for example), unless
        the update found the same content in other files.

        Args:
            found: result of `scan`.
            recognised: hashes of content that the update found in other files.

        Returns:
            The paths of deleted files, and the number of kept images for each missing input and each missing or empty
            folder.
        """
        there, folders = Presence(), MissingFolders()
        gone: list[str] = []
        kept = dict.fromkeys(found.missing, 0)
        for path, rows in self._rows.items():
            if path in found.files or path in there:
                continue
            if _is_elsewhere(rows, recognised):
                gone.append(path)
                continue
            missing = next((one for one in found.missing if is_inside(path, one)), None)
            if missing is None and not found.covers(path):
                continue
            place = missing or folders.around(path)
            if place is None:
                gone.append(path)
            else:
                kept[place] = kept.get(place, 0) + sum(not row.is_problem for row in rows)
        return gone, kept

    def below(self, folder: str) -> list[str]:
        """Return the paths of the indexed files below a folder."""
        return [path for path in self._rows if is_inside(path, folder)]

    def is_as_before(self, file: FoundFile) -> bool:
        """Return whether a file is unchanged."""
        if file.kind == "image":
            return [(row.size, row.mtime_ns) for row in self.rows(file.path)] == [(file.size, file.mtime_ns)]
        before = self._finished.get(file.path)
        return before is not None and (before.num_bytes, before.mtime_ns) == (file.size, file.mtime_ns)

    def task(self, file: FoundFile) -> FileTask:
        """Return the task for reading a file, with the finished samples of a shard."""
        if file.kind != "shard":
            return FileTask(file=file)
        known = self.rows(file.path)
        return FileTask(
            file=file,
            parts=frozenset(row.part for row in known),
            done=frozenset(row.part for row in known if row.mtime_ns == file.mtime_ns),
        )

    def content(self) -> KnownContent:
        """Return the hashes of all content that has embeddings in the index."""
        return KnownContent(images=self._hashes_of_size, videos=self._video_of_hash)

    def content_like(self, file: FoundFile) -> KnownContent:
        """Return the indexed content that a file of this size may have; for a shard, also its earlier content."""
        if file.kind == "image":
            return KnownContent(images={file.size: self.content().of_size(file.size)})
        alike = self._finished_of_size.get(file.size, [])
        if file.kind == "video":
            return KnownContent(videos=frozenset(row.sha256 for path in alike for row in self.rows(path)))
        hashes: dict[int, list[str]] = defaultdict(list)
        for path in {file.path, *alike}:
            for row in self.rows(path):
                if not row.is_problem:
                    hashes[row.size].append(row.sha256)
        return KnownContent(images=dict(hashes))

    def take_replaced(self, path: str, part: str | None) -> list[int]:
        """Return the ids of the rows to replace for a file or sample; further calls return an empty list."""
        if path not in self._rows:
            return []
        if path not in self._replaceable:
            ids: dict[str | None, list[int]] = defaultdict(list)
            for row in self._rows[path]:
                ids[row.part].append(row.id)
            self._replaceable[path] = dict(ids)
        return self._replaceable[path].pop(part, [])

    def copies(self, recognised: Sequence[Recognised]) -> list[Row]:
        """Return new rows for images and videos whose content is already in the index."""
        wanted = [(one, number) for one in recognised for number in self._ids_of(one)]
        rows = {row.id: row for row in self._store.rows(list({number for _, number in wanted}))}
        return [
            attrs.evolve(rows[number], id=None, path=one.file.path, part=one.part, mtime_ns=one.file.mtime_ns)
            for one, number in wanted
        ]

    def _ids_of(self, one: Recognised) -> list[int]:
        if one.file.kind != "video":
            return [self._id_of_hash[one.sha256]]
        return [row.id for row in self.rows(self._video_of_hash[one.sha256])]


def _is_elsewhere(rows: Sequence[KnownRow], recognised: Collection[str]) -> bool:
    """Return whether all readable content of a file was found in other files."""
    hashes = {row.sha256 for row in rows if not row.is_problem}
    return bool(hashes) and hashes.issubset(recognised)

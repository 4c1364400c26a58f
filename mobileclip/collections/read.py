"""Reads and encodes image files, videos and shards, without access to the index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.metadata import FinishedFile
from mobileclip.collections.scan import FoundFile, estimated_images
from mobileclip.collections.store import Row
from mobileclip.collections.videos import Frames, SceneChooser, hash_file, inspect_video
from mobileclip.data import CameraMetadata, ImageError, Pixels, Skip, SkipReport, read_shard
from mobileclip.hardware import FastPrecision
from mobileclip.inference import Encoded, ImageItem, ImageRead, ImageTextModel, Moment, encode_images
from mobileclip.inputs import Decode
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class IndexOptions:
    """The settings of an index update: decoding, encoding, and intervals between writes.

    Args:
        batch_size: number of images per batch.
        num_workers: number of decoding processes; 1 decodes in this process. With an engine, the engine's workers
            decode, and this setting has no effect.
        decode: `fast` to decode a JPEG at reduced size, see `read_tower_image`; `exact` for full size.
        video_frames: `seconds` or `scenes`, see `inspect_video`.
        video_seconds: seconds between video frames, see `inspect_video`.
        precision: lowest precision allowed for the image tower on a CPU; applies only if `mobileclip.optimize` finds
            this precision accurate enough.
        segment_rows: number of images after which the update writes to the index.
        segment_seconds: seconds after which the update writes to the index.
        show_progress: whether to show progress.
    """

    batch_size: int = attrs.field(default=32, validator=validators.gt(0))
    num_workers: int = attrs.field(default=1, validator=validators.gt(0))
    decode: Decode = "fast"
    video_frames: Frames = "seconds"
    video_seconds: float = attrs.field(default=10.0, validator=validators.ge(1))
    precision: FastPrecision = "bfloat16"
    segment_rows: int = attrs.field(default=4096, validator=validators.gt(0))
    segment_seconds: float = attrs.field(default=10.0, validator=validators.gt(0))
    show_progress: bool = True


@attrs.frozen(kw_only=True)
class Recognised:
    """An image or a video whose content is already in the index.

    Args:
        file: file with the image or video.
        part: key of the sample in its shard; None for other files.
        sha256: SHA-256 of the content.
    """

    file: FoundFile
    part: str | None
    sha256: str


@attrs.define(kw_only=True, eq=False)
class Findings:
    """The results of reading files.

    Args:
        rows: rows of encoded images and of unreadable files.
        recognised: images and videos whose content the index already has.
        gone: path and key of each sample that a completely read shard no longer contains.
        finished: completely read shards and videos.
        unreadable: message for each unreadable file, with name and reason.
        uninstalled: number of files that need a missing extra, by installation command.
        num_encoded: number of images among the rows.
        num_unchanged: number of samples already in the index.
    """

    rows: list[Row] = attrs.field(factory=list)
    recognised: list[Recognised] = attrs.field(factory=list)
    gone: list[tuple[str, str | None]] = attrs.field(factory=list)
    finished: list[FinishedFile] = attrs.field(factory=list)
    unreadable: list[str] = attrs.field(factory=list)
    uninstalled: Counter[str] = attrs.field(factory=Counter)
    num_encoded: int = 0
    num_unchanged: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows, including rows of recognised content."""
        return len(self.rows) + len(self.recognised)

    def add(self, other: Findings) -> None:
        """Append other findings to these findings."""
        for field in ("rows", "recognised", "gone", "finished", "unreadable"):
            getattr(self, field).extend(getattr(other, field))
        self.uninstalled.update(other.uninstalled)
        self.num_encoded += other.num_encoded
        self.num_unchanged += other.num_unchanged


# Maximum number of hashes per size, as each task sends these hashes to another process.
_MOST_HASHES = 100
# The next run reads a file again that was refused for one of these reasons, even if the file is unchanged: the user may
# have raised the limits, for example.
_PASSING = frozenset(("unreadable", "out_of_memory", "too_large", "too_many_scans"))


@attrs.frozen(kw_only=True)
class FileTask:
    """A file to read, with its rows in the index.

    Args:
        file: file of the scan.
        parts: keys of the file's samples in the index.
        done: keys of samples already read from the current version of the file.
    """

    file: FoundFile
    parts: frozenset[str | None] = frozenset()
    done: frozenset[str | None] = frozenset()


@attrs.frozen(kw_only=True, eq=False)
class KnownContent:
    """Hashes of content that already has embeddings.

    Args:
        images: hashes of images, by size in bytes.
        videos: hashes of completely read videos.
    """

    images: Mapping[int, Sequence[str]] = attrs.field(factory=dict)
    videos: Collection[str] = ()

    def of_size(self, size: int) -> tuple[str, ...]:
        """Return at most 100 known hashes of images of the given size in bytes."""
        return tuple(self.images.get(size, ())[:_MOST_HASHES])


@attrs.frozen(kw_only=True)
class _Wanted:
    """An image to read: a file, a sample of a shard, or a video frame with digest and metadata of the video."""

    file: FoundFile
    part: str | None = None
    time: float | None = None
    sha256: str = ""
    notes: CameraMetadata = CameraMetadata()


class FileReader:
    """Reads files and collects the findings.

    `num_expected` is the number of images in files already read, plus an estimate for all other files.

    Args:
        tasks: files to read, in order.
        known: hashes of content that already has embeddings.
        options: indexing options.
    """

    def __init__(self, tasks: Sequence[FileTask], known: KnownContent, options: IndexOptions) -> None:
        self._tasks, self._known, self._options = tasks, known, options
        self.findings = Findings()
        self.num_expected = estimated_images(task.file for task in tasks)
        self._scenes = SceneChooser()
        self._torn: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._read_to_end: dict[str, FoundFile] = {}

    def read(self, clip: ImageTextModel, num_workers: int) -> Iterator[None]:
        """Read all files, and yield None after each image.

        Args:
            clip: model that encodes the images.
            num_workers: number of decoding processes; 1 decodes in this process.

        Raises:
            LostProcessError: if a decoding process dies.
        """
        encoded = encode_images(
            clip,
            self._images(),
            reduced=self._options.decode == "fast",
            batch_size=self._options.batch_size,
            num_workers=num_workers,
            choose=self._is_wanted if self._options.video_frames == "scenes" else None,
        )
        for one in encoded:
            self._enter(one)
            yield

    def take(self) -> Findings:
        """Return the findings since the last call."""
        found, self.findings = self.findings, Findings()
        for path, file in tuple(self._read_to_end.items()):
            if self._asked[path] == self._answered[path]:
                found.finished.append(FinishedFile(path=path, num_bytes=file.size, mtime_ns=file.mtime_ns))
                del self._read_to_end[path]
        return found

    def _images(self) -> Iterator[ImageItem[_Wanted]]:
        for task in self._tasks:
            file = task.file
            if file.kind == "image":
                known = self._known.of_size(file.size)
                yield ImageItem(key=_Wanted(file=file), name=file.path, source=Path(file.path), known=known)
                continue
            yield from self._images_of_shard(task) if file.kind == "shard" else self._frames_of_video(file)
            self.num_expected += self._asked[file.path] - estimated_images([file])

    def _images_of_shard(self, task: FileTask) -> Iterator[ImageItem[_Wanted]]:
        """Yield the images of a shard; skip images that an interrupted job already wrote to the index."""
        file = task.file
        skips = SkipReport(log=False)
        seen: set[str] = set()
        for raw in read_shard(file.path, skips.add):
            image = raw.image
            if image is None or raw.problem is not None or raw.key in seen:
                detail = "the sample has no image" if raw.problem is None else raw.problem.detail
                skips.add(Skip(reason="no_image", key=raw.key, shard=file.path, detail=detail))
                continue
            seen.add(raw.key)
            if raw.key in task.done:
                self.findings.num_unchanged += 1
                continue
            self._asked[file.path] += 1
            yield ImageItem(
                key=_Wanted(file=file, part=raw.key),
                name=f"{file.path}/{raw.key}",
                source=image,
                known=self._known.of_size(len(image)),
            )
        self.findings.unreadable += [
            f"{skip.key} of {skip.shard}: {skip.detail}" for named in skips.named.values() for skip in named
        ]
        self.findings.gone += [(file.path, part) for part in task.parts if part not in seen]
        self._read_to_end[file.path] = file

    def _frames_of_video(self, file: FoundFile) -> Iterator[ImageItem[_Wanted]]:
        """Yield the frames of a video, unless its content is already in the index."""
        path = Path(file.path)
        try:
            # The inspection comes first, as hashing an unreadable video may take minutes.
            facts = inspect_video(path, self._options.video_frames, self._options.video_seconds)
            sha256 = hash_file(path)
        except ImageError as error:
            if self._refuse(_Wanted(file=file), error):
                self._read_to_end[file.path] = file
            return
        is_known = sha256 in self._known.videos
        if is_known:
            self.findings.recognised.append(Recognised(file=file, part=None, sha256=sha256))
        for moment in () if is_known else facts.times:
            self._asked[file.path] += 1
            yield ImageItem(
                key=_Wanted(file=file, time=moment, sha256=sha256, notes=facts.notes),
                name=file.path,
                source=Moment(path=path, seconds=moment),
            )
        self._read_to_end[file.path] = file

    def _is_wanted(self, item: ImageItem[_Wanted], pixels: Pixels) -> bool:
        return item.key.time is None or self._scenes.is_new(item.name, pixels)

    def _refuse(self, wanted: _Wanted, error: ImageError) -> bool:
        """Record an unreadable file, and return whether the file stays unreadable until its content changes."""
        file = wanted.file
        if error.reason == "missing_file":
            return False  # removed after the scan
        if error.reason == "missing_package":
            self.findings.uninstalled[error.install] += 1
            return False
        self.findings.unreadable.append(error.message)
        if error.reason in _PASSING:
            return False
        self.findings.rows.append(
            Row(
                path=file.path,
                part=wanted.part,
                size=file.size,
                mtime_ns=file.mtime_ns,
                sha256=wanted.sha256,
                problem=storage.printable(error.message),
            )
        )
        return True

    def _enter(self, one: Encoded[_Wanted]) -> None:
        wanted, read = one.item.key, one.read
        if wanted.file.kind != "image":
            self._answered[wanted.file.path] += 1
        if wanted.time is not None:
            self._enter_frame(wanted, one)
        elif isinstance(read, ImageError):
            self._refuse(wanted, read)
        elif one.embedding is None:
            self.findings.recognised.append(Recognised(file=wanted.file, part=wanted.part, sha256=read.sha256))
        else:
            self._add(wanted, read, one.embedding, size=read.num_bytes, sha256=read.sha256, notes=read.notes)

    def _enter_frame(self, wanted: _Wanted, one: Encoded[_Wanted]) -> None:
        file, read = wanted.file, one.read
        if isinstance(read, ImageError):
            # A video is reported once, even if several frames are unreadable.
            if file.path not in self._torn:
                self._torn.add(file.path)
                if not self._refuse(wanted, read):
                    self._asked[file.path] += 1  # the file is not finished
        elif one.embedding is not None:
            self._add(wanted, read, one.embedding, size=file.size, sha256=wanted.sha256, notes=wanted.notes)

    def _add(
        self,
        wanted: _Wanted,
        read: ImageRead,
        embedding: NDArray[np.float32],
        *,
        size: int,
        sha256: str,
        notes: CameraMetadata,
    ) -> None:
        """Add the row of an encoded image."""
        self.findings.num_encoded += 1
        self.findings.rows.append(
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

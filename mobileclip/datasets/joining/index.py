"""The index of a join: one table per shard, with the positions of images or the names of samples.

The join writes tables atomically. If a table is missing or damaged, the join reads the shard again. Several joins may
share an index.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import parse_object
from mobileclip.data.shards.files import expand_shards
from mobileclip.data.shards.tar import (
    START_BYTES,
    ForwardReader,
    TarMember,
    by_key,
    forward_reader,
    is_compressed,
    member_key,
    read_content,
    tar_members,
)
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.joining.spec import JoinSpec
from mobileclip.datasets.sources.shards import listed_fingerprints
from mobileclip.datasets.sources.tables import read_annotated_table, write_annotated_table
from mobileclip.engines import FunctionWork, ResultCallback, Run, SetAside
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.strict import strict
from mobileclip.terminal import console

NAME = np.dtype([("high", "u8"), ("low", "u8")])
"""The 128-bit hash of a sample's name; zeros if the sample needs no image."""

PLACE = np.dtype(
    [
        *NAME.descr,
        *(("start", "u8"), ("size", "u4"), ("text_start", "u8"), ("text_size", "u4")),
        *(("json_start", "u8"), ("json_size", "u4"), ("extension", "u1"), ("sha256", "u8")),
    ]
)
"""The position of an image in its shard: hash of the image's name; offset and size of the image, the caption and the
JSON (zeros for a missing member); index of the extension; first 8 bytes of the image's SHA-256."""

PLACES, NAMES = "places", "names"
KINDS = {PLACES: PLACE, NAMES: NAME}
"""Dtype of the records, by kind; the kind is also the suffix of the file name."""

_MISSING = "missing"
_MOST_PROBLEM = 1000
# The size field has 32 bits.
_MOST_BYTES = 2**32 - 1


@attrs.frozen(kw_only=True, field_transformer=strict)
class ShardMetadata:
    """Metadata of an indexed shard's records.

    Args:
        shard: path or URL of the shard.
        by: field that names images and samples: `key`, `url`, or a field of the `.json` member.
        fingerprint: fingerprint of the shard at the time of reading; empty if the next run must read the shard again.
        hashed: whether the records have hashes of the images.
        num_records: number of images or samples.
        num_without: number of samples without the field `by`.
        problem: error that ended reading early; None for a complete read.
    """

    shard: str
    by: str
    fingerprint: str
    hashed: bool = False
    num_records: int = 0
    num_without: int = 0
    problem: str | None = None


def name_hash(name: str) -> tuple[int, int]:
    """Return the 128-bit hash of a sample's or image's name, as two 64-bit integers."""
    digest = blake2b(name.encode(errors="surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def digest_of(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def records_path(folder: Path, kind: str, by: str, shard: str) -> Path:
    """Return the path of the file with a shard's records.

    Args:
        folder: folder of the index.
        kind: kind of records, `places` or `names`; also the suffix of the file name.
        by: field that names images and samples, see `ShardMetadata`.
        shard: path or URL of the shard.
    """
    digest = blake2b(f"{by}\n{shard}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return folder / digest[:2] / f"{digest[2:]}.{kind}.parquet"


def write_records(folder: Path, kind: str, about: ShardMetadata, records: Records) -> ShardMetadata:
    """Write a shard's records as a table with one column, and return the shard's metadata with the number of records.

    Args:
        folder: folder of the index.
        kind: kind of records, `places` or `names`.
        about: metadata of the shard.
        records: records of the shard.
    """
    import pyarrow as pa

    about = attrs.evolve(about, num_records=len(records))
    column = pa.Array.from_buffers(
        pa.binary(KINDS[kind].itemsize), len(records), [None, pa.py_buffer(records.tobytes())]
    )
    table = pa.Table.from_arrays([column], [kind])
    write_annotated_table(str(records_path(folder, kind, about.by, about.shard)), table, about)
    return about


def read_shard_metadata(folder: Path, kind: str, by: str, shard: str) -> ShardMetadata | None:
    """Return a shard's metadata; None if the file is missing, or has a different shard or `by`.

    Args:
        folder: folder of the index.
        kind: kind of records, `places` or `names`.
        by: field that names images and samples, see `ShardMetadata`.
        shard: path or URL of the shard.
    """
    found = read_annotated_table(str(records_path(folder, kind, by, shard)), ShardMetadata, rows=False)
    return found[0] if found is not None and (found[0].shard, found[0].by) == (shard, by) else None


def read_records(folder: Path, kind: str, about: ShardMetadata) -> Records:
    """Return the records of a shard.

    Args:
        folder: folder of the index.
        kind: kind of records, `places` or `names`.
        about: result of `read_shard_metadata`.

    Raises:
        ValueError: if the records are missing or damaged. The function removes the file, and the next run reads the
            shard again.
    """
    path, dtype = records_path(folder, kind, about.by, about.shard), KINDS[kind]
    found = read_annotated_table(str(path), ShardMetadata)
    if found is not None and found[0] == about and found[1] is not None and found[1].column_names == [kind]:
        column = found[1][kind].combine_chunks()
        if len(column) == about.num_records and getattr(column.type, "byte_width", 0) == dtype.itemsize:
            records = np.frombuffer(column.buffers()[1] or b"", dtype, len(column))
            if kind == NAMES or bool((records["extension"] < len(IMAGE_EXTENSIONS)).all()):
                return records
    path.unlink(missing_ok=True)
    raise ValueError(f"{path} is missing or damaged; run the join again to index the shard")


@attrs.frozen(kw_only=True)
class ScanUnit:
    """A shard to index: the positions of images, or the names of samples.

    Args:
        name: unique name of the unit.
        shard: path or URL of the shard.
        fingerprint: fingerprint of the shard.
        kind: kind of records, `places` of images or `names` of samples.
        folder: folder of the index.
        by: field that names images and samples, see `ShardMetadata`.
        limits: size limits for reading; the unit skips larger members.
        hashed: whether to read and hash the images; False skips the image data.
    """

    name: str
    shard: str
    fingerprint: str
    kind: str
    folder: Path
    by: str
    limits: SampleLimits
    hashed: bool = False

    def read(self) -> ShardMetadata:
        """Read the shard up to the end or a truncation, and return the metadata.

        The metadata also records the error of a truncated or missing image shard. Later runs retry shards with a read
        error, and truncated reinforced shards.

        Raises:
            ValueError: if the shard exists but cannot be read; the index keeps the records before the error.
            StorageError: if a store or disk has a temporary error; the index keeps the records before the error.
        """
        rows: list[tuple[int, ...] | None] = []
        error: Exception | None = None
        try:
            with storage.open_read(self.shard) as stream:
                rows.extend(self._rows(stream))
        except Exception as caught:  # noqa: BLE001 - libraries may raise any error for a shard's bytes
            raise_machine_fault(caught)
            error = caught
        unread = error if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else None
        is_known = error is None or (unread is None and self.kind == PLACES)
        about = self._write(rows, self.fingerprint if is_known else "", None if error is None else _problem(error))
        if unread is not None:
            raise (storage.StorageError if storage.is_transient(unread) else ValueError)(about.problem) from unread
        return about

    def known(self) -> ShardMetadata | None:
        """Return the metadata from an earlier run; None if the shard has changed or required hashes are missing."""
        about = read_shard_metadata(self.folder, self.kind, self.by, self.shard)
        is_same = about is not None and about.fingerprint == self.fingerprint and (about.hashed or not self.hashed)
        return about if is_same else None

    def left(self, reason: str) -> ShardMetadata:
        """Return the metadata of an unreadable shard, with the records before the error.

        Args:
            reason: error message of the last failure.
        """
        about = read_shard_metadata(self.folder, self.kind, self.by, self.shard)
        # A record with a different problem comes from an earlier run: the process that read the shard was lost.
        return about if about is not None and about.problem == reason else self._write([], "", reason)

    def _write(self, rows: list[tuple[int, ...] | None], fingerprint: str, problem: str | None) -> ShardMetadata:
        found = [row for row in rows if row is not None]
        about = ShardMetadata(
            shard=self.shard,
            by=self.by,
            fingerprint=fingerprint,
            hashed=self.hashed,
            num_without=len(rows) - len(found),
            problem=problem and problem[:_MOST_PROBLEM],
        )
        return write_records(self.folder, self.kind, about, np.array(found, KINDS[self.kind]))

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[int, ...] | None]:
        """Yield a record per image (None if the sample lacks the field `by`), or a hash of each sample's name.

        The hash is zero for a sample that has an image or no name.
        """
        is_places, limits = self.kind == PLACES, self.limits
        if is_places and is_compressed(file.read(START_BYTES)):
            raise tarfile.ReadError(
                "the shard is compressed, but a join reads images by offset; decompress the shard first"
            )
        stream = file if is_places else forward_reader(file, limits)
        texts = {"key": (), "url": ("json", "url.txt")}.get(self.by, ("json",))
        for key, own in by_key(tar_members(stream), attrgetter("name")):
            members: dict[str, TarMember] = {}
            contents: dict[str, bytes] = {}
            for extension, member in own:
                is_text = extension in ("json", "url.txt")
                if member.size > (limits.text_bytes if is_text else min(limits.member_bytes, _MOST_BYTES)):
                    continue
                members[extension] = member
                if extension in texts:
                    contents[extension] = _content(stream, member)
                elif self.hashed and extension in IMAGE_EXTENSIONS:
                    contents[extension] = hashlib.sha256(_content(stream, member)).digest()
            image = next((one for one in IMAGE_EXTENSIONS if one in members), None)
            if not is_places:
                called = "" if image else sample_name(key, contents, by=self.by, limits=limits)
                yield name_hash(called) if called else (0, 0)
            elif image is not None:
                name = storable(key) if self.by == "key" else field_of(contents.get("json"), self.by, limits)
                there = [members.get(one) for one in (image, "txt", "json")]
                where = [number for one in there for number in ((one.offset, one.size) if one else (0, 0))]
                digest = int.from_bytes(contents.get(image, b"")[:8], "big")
                yield None if name is None else (*name_hash(name), *where, IMAGE_EXTENSIONS.index(image), digest)


def sample_name(key: str, members: Mapping[str, bytes], *, by: str, limits: SampleLimits) -> str:
    """Return the name for looking up a sample's image; empty for `url` if the sample has no URL.

    Args:
        key: key of the sample.
        members: members of the sample, including `json` and `url.txt` if present.
        by: `key`, `url`, or a field of the JSON; the key replaces a missing field.
        limits: size limits for reading.
    """
    if by == "url":
        return storable(members.get("url.txt", b"").decode(errors="backslashreplace").strip())
    return (None if by == "key" else field_of(members.get("json"), by, limits)) or storable(key)


def json_member(content: bytes | None, limits: SampleLimits) -> Mapping[str, Any]:
    """Return the object in a `.json` member; an empty object for a missing or unreadable member.

    Args:
        content: content of the member; None for a missing member.
        limits: size limits for reading.
    """
    try:
        return parse_object(content or b"{}", "json", limit=limits.text_bytes)
    except BadSampleError:
        return {}


def field_of(metadata: bytes | None, name: str, limits: SampleLimits) -> str | None:
    """Return a field of a sample's JSON as a string; None if the field is missing or not a string or integer."""
    value = json_member(metadata, limits).get(name)
    is_name = isinstance(value, (str, int)) and not isinstance(value, bool)
    return storable(str(value).strip()) or None if is_name else None


def storable(key: str) -> str:
    """Return a key with escapes for bytes that are not UTF-8, because names in tar files may contain any bytes."""
    return key if key.isascii() else key.encode(errors="backslashreplace").decode()


def _content(stream: IO[bytes] | ForwardReader, member: TarMember) -> bytes:
    stream.seek(member.offset)
    return read_content(stream, member)


def _problem(error: Exception) -> str:
    text = str(error) if isinstance(error, tarfile.TarError) else f"{type(error).__name__}: {error}"
    return storage.printable(storage.without_secrets(" ".join(text.split())))


@attrs.frozen(kw_only=True)
class ImageIndex:
    """The positions of all images in their shards, from `build_image_index`.

    Args:
        folder: folder of the index.
        by: field that names the images: `key`, `url`, or a field of the `.json` member.
        shards: metadata of each shard, in order. If several images have the same name, the join uses the first image.
        limits: size limits for reading.
    """

    folder: Path
    by: str
    shards: tuple[ShardMetadata, ...]
    limits: SampleLimits

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(about.num_records for about in self.shards)

    def fingerprint(self) -> str:
        """Return a hash of the indexed shards and their order."""
        return digest_of([self.by, *([about.shard, about.fingerprint, about.num_records] for about in self.shards)])

    def name_at(self, shard: int, row: int) -> str:
        """Read the name of an image from its shard; empty if the shard can no longer be read.

        Args:
            shard: number of the shard.
            row: row of the image's record in the shard's table.

        Raises:
            ValueError: if the records are missing or damaged.
        """
        place = read_records(self.folder, PLACES, self.shards[shard])[row]
        try:
            with storage.open_read(self.shards[shard].shard) as stream:
                if self.by == "key":
                    return member_key(stream, int(place["start"]))
                stream.seek(int(place["json_start"]))
                return field_of(stream.read(int(place["json_size"])), self.by, self.limits) or ""
        except OSError as error:
            raise_machine_fault(error)
            return ""


def build_image_index(
    run: Run, folder: Path, spec: JoinSpec, reinforced: Mapping[str, str], *, show_progress: bool
) -> tuple[ImageIndex, dict[str, ShardMetadata]]:
    """Build the index of images and sample names; read only new and changed shards.

    Args:
        run: engine run that reads the shards.
        folder: local folder of the index; the function creates a missing folder.
        spec: the options; if they include the search for placeholders, the function also reads and hashes the images.
        reinforced: fingerprints of existing reinforced shards, by path or URL.
        show_progress: whether to show a bar with speed and remaining time.

    Returns:
        The index, and the metadata of every reinforced shard, by path or URL.

    Raises:
        ValueError: if the shards have no readable image with the field `by`.
        OSError: if the folder cannot be written.
    """
    # The fingerprints list the existing shards, so no unit checks again whether a shard exists.
    images = expand_shards(spec.images)
    fingerprints = dict.fromkeys(images, _MISSING) | listed_fingerprints(images)
    units = [
        ScanUnit(
            name=f"{side} shard {number}, {storage.printable(storage.without_secrets(shard))}",
            shard=shard,
            fingerprint=fingerprint,
            kind=kind,
            folder=folder,
            by=spec.by,
            limits=spec.sample_limits,
            hashed=spec.placeholder_threshold > 0 and kind == PLACES,
        )
        for side, kind, shards in (("image", PLACES, fingerprints), ("reinforced", NAMES, reinforced))
        for number, (shard, fingerprint) in enumerate(shards.items())
    ]
    known = {unit.name: about for unit in units if (about := unit.known()) is not None}
    pending = [unit for unit in units if unit.name not in known]
    screen = console(shown=show_progress and bool(pending))

    def take(unit: ScanUnit, result: ShardMetadata | SetAside) -> None:
        known[unit.name] = unit.left(result.reason) if isinstance(result, SetAside) else result
        bar.advance(count=known[unit.name].num_records)

    with Progress("indexing", total=len(units), done=len(known), unit="keys", console=screen) as bar:
        run.begin("indexing", num_units=len(units), num_done_before=len(known), then=("matching", "joining"))
        run.do(FunctionWork(function=ScanUnit.read), pending, ResultCallback[ScanUnit, ShardMetadata](take))
    every = [known[unit.name] for unit in units]
    index = ImageIndex(folder=folder, by=spec.by, shards=tuple(every[: len(fingerprints)]), limits=spec.sample_limits)
    if not index.num_images:
        problems = (about.problem for about in index.shards if about.problem is not None)
        num_without = sum(about.num_without for about in index.shards)
        problem = next(problems, f"{num_without} samples have no field {spec.by!r}")
        raise ValueError(f"the {len(index.shards)} shards from {index.shards[0].shard} on have no images: {problem}")
    return index, dict(zip(reinforced, every[len(fingerprints) :], strict=True))

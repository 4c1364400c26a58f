"""The index of a join: a table per shard with the positions of its images, or the names of its samples.

Tables are written atomically. A damaged table counts as missing, and its shard is read again. Several joins may share
an index.
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
from mobileclip.datasets.sources.tables import read_noted, write_noted
from mobileclip.engines import EachResult, FunctionWork, Run, SetAside
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.strict import strict
from mobileclip.terminal import console

NAME = np.dtype([("high", "u8"), ("low", "u8")])
"""The 128-bit hash of what a sample is called; zeros where it asks for no image."""

PLACE = np.dtype(
    [
        *NAME.descr,
        *(("start", "u8"), ("size", "u4"), ("text_start", "u8"), ("text_size", "u4")),
        *(("json_start", "u8"), ("json_size", "u4"), ("extension", "u1"), ("sha256", "u8")),
    ]
)
"""Where an image is: the hash of its name, where it begins in its shard and its bytes, likewise its caption and its
JSON (zeros where there is none), the number of its extension, and the first 8 bytes of its SHA-256."""

PLACES, NAMES = "places", "names"
KINDS = {PLACES: PLACE, NAMES: NAME}
"""Kinds of records by the suffix of their files."""

_MISSING = "missing"
_MOST_PROBLEM = 1000
# What its size is kept in.
_MOST_BYTES = 2**32 - 1


@attrs.frozen(kw_only=True, field_transformer=strict)
class AboutShard:
    """Metadata of an indexed shard's records.

    Args:
        shard: its path or URL.
        by: the name field of its records.
        fingerprint: fingerprint of the shard at reading; empty to read it again.
        hashed: whether its images have hashes.
        num_records: number of images or samples.
        num_without: samples without the name field.
        problem: error that ended reading early.
    """

    shard: str
    by: str
    fingerprint: str
    hashed: bool = False
    num_records: int = 0
    num_without: int = 0
    problem: str | None = None


def name_hash(name: str) -> tuple[int, int]:
    """Return the 128-bit hash of a sample's or image's name, as two numbers."""
    digest = blake2b(name.encode(errors="surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def digest_of(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def records_path(folder: Path, kind: str, by: str, shard: str) -> Path:
    """Return the file with the records of a shard.

    Args:
        folder: folder of the index.
        kind: suffix of its name, `places` or `names`.
        by: the name field of the records.
        shard: path or URL.
    """
    digest = blake2b(f"{by}\n{shard}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return folder / digest[:2] / f"{digest[2:]}.{kind}.parquet"


def write_records(folder: Path, kind: str, about: AboutShard, records: Records) -> AboutShard:
    """Write the records of a shard as a table with one column, and return the shard's metadata with their number.

    Args:
        folder: folder of the index.
        kind: of records, `places` or `names`.
        about: the shard.
        records: records of it.
    """
    import pyarrow as pa

    about = attrs.evolve(about, num_records=len(records))
    column = pa.Array.from_buffers(
        pa.binary(KINDS[kind].itemsize), len(records), [None, pa.py_buffer(records.tobytes())]
    )
    table = pa.Table.from_arrays([column], [kind])
    write_noted(str(records_path(folder, kind, about.by, about.shard)), table, about)
    return about


def read_about(folder: Path, kind: str, by: str, shard: str) -> AboutShard | None:
    """Return a shard's metadata; None for a missing or other file.

    Args:
        folder: folder of the index.
        kind: of records, `places` or `names`.
        by: the name field of the records.
        shard: path or URL.
    """
    found = read_noted(str(records_path(folder, kind, by, shard)), AboutShard, rows=False)
    return found[0] if found is not None and (found[0].shard, found[0].by) == (shard, by) else None


def read_records(folder: Path, kind: str, about: AboutShard) -> Records:
    """Return the records of a shard.

    Args:
        folder: folder of the index.
        kind: of records, `places` or `names`.
        about: result of `read_about`.

    Raises:
        ValueError: if they are missing or damaged; the file is removed, and the next run reads its shard again.
    """
    path, dtype = records_path(folder, kind, about.by, about.shard), KINDS[kind]
    found = read_noted(str(path), AboutShard)
    if found is not None and found[0] == about and found[1] is not None and found[1].column_names == [kind]:
        column = found[1][kind].combine_chunks()
        if len(column) == about.num_records and getattr(column.type, "byte_width", 0) == dtype.itemsize:
            records = np.frombuffer(column.buffers()[1] or b"", dtype, len(column))
            if kind == NAMES or bool((records["extension"] < len(IMAGE_EXTENSIONS)).all()):
                return records
    path.unlink(missing_ok=True)
    raise ValueError(f"{path} is missing or damaged; run this again to read its shard")


@attrs.frozen(kw_only=True)
class ScanUnit:
    """A shard to index: positions of its images, or names of its samples.

    Args:
        name: name of the unit.
        shard: path or URL.
        fingerprint: fingerprint of it.
        kind: of records, `places` of images or `names` of samples.
        folder: folder of the index.
        by: the name field of samples and images: `key`, `url`, or a field of their JSON.
        limits: size limits for reading; larger members are skipped.
        hashed: whether to read and hash images, instead of headers only.
    """

    name: str
    shard: str
    fingerprint: str
    kind: str
    folder: Path
    by: str
    limits: SampleLimits
    hashed: bool = False

    def read(self) -> AboutShard:
        """Read the shard up to its end or a break, and return its metadata.

        The metadata also records broken and missing images. Every run tries an existing unreadable shard again, and a
        truncated reinforced shard.

        Raises:
            ValueError: if it exists and cannot be read; records before the error are kept.
            StorageError: for a temporary error; records before the error are kept.
        """
        rows: list[tuple[int, ...] | None] = []
        error: Exception | None = None
        try:
            with storage.open_read(self.shard) as stream:
                rows.extend(self._rows(stream))
        except Exception as caught:  # noqa: BLE001 - the last barrier of a shard: whatever its bytes make libraries raise
            raise_machine_fault(caught)
            error = caught
        unread = error if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else None
        is_known = error is None or (unread is None and self.kind == PLACES)
        about = self._write(rows, self.fingerprint if is_known else "", None if error is None else _problem(error))
        if unread is not None:
            raise (storage.StorageError if storage.is_transient(unread) else ValueError)(about.problem) from unread
        return about

    def known(self) -> AboutShard | None:
        """Return an earlier run's record of the shard, if valid and with the needed hashes."""
        about = read_about(self.folder, self.kind, self.by, self.shard)
        is_same = about is not None and about.fingerprint == self.fingerprint and (about.hashed or not self.hashed)
        return about if is_same else None

    def left(self, reason: str) -> AboutShard:
        """Return the record of a truncated shard, up to the break.

        Args:
            reason: why the last try failed.
        """
        about = read_about(self.folder, self.kind, self.by, self.shard)
        # Another record is of another time: the process that read the shard was lost.
        return about if about is not None and about.problem == reason else self._write([], "", reason)

    def _write(self, rows: list[tuple[int, ...] | None], fingerprint: str, problem: str | None) -> AboutShard:
        found = [row for row in rows if row is not None]
        about = AboutShard(
            shard=self.shard,
            by=self.by,
            fingerprint=fingerprint,
            hashed=self.hashed,
            num_without=len(rows) - len(found),
            problem=problem and problem[:_MOST_PROBLEM],
        )
        return write_records(self.folder, self.kind, about, np.array(found, KINDS[self.kind]))

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[int, ...] | None]:
        """Yield a record of each image, None if it lacks the field; or the name of each sample, as headers say it.

        A sample with an image of its own asks for none.
        """
        is_places, limits = self.kind == PLACES, self.limits
        if is_places and is_compressed(file.read(START_BYTES)):
            raise tarfile.ReadError("it is compressed, and images are read by their place; decompress it first")
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
    """Return the name for looking up a sample's image; empty for `url` without a URL.

    Args:
        key: key of the sample.
        members: members of the sample: `json` and `url.txt`, if any.
        by: `key`, `url`, or a field of the JSON, with the key as fallback.
        limits: size limits for reading.
    """
    if by == "url":
        return storable(members.get("url.txt", b"").decode(errors="backslashreplace").strip())
    return (None if by == "key" else field_of(members.get("json"), by, limits)) or storable(key)


def stated_of(content: bytes | None, limits: SampleLimits) -> Mapping[str, Any]:
    """Return the object in a `.json` member; an empty one where there is none, or none that can be read.

    Args:
        content: content of the member.
        limits: size limits for reading.
    """
    try:
        return parse_object(content or b"{}", "json", limit=limits.text_bytes)
    except BadSampleError:
        return {}


def field_of(metadata: bytes | None, name: str, limits: SampleLimits) -> str | None:
    """Return a field of a sample's JSON as a name, or None."""
    value = stated_of(metadata, limits).get(name)
    is_name = isinstance(value, (str, int)) and not isinstance(value, bool)
    return storable(str(value).strip()) or None if is_name else None


def storable(key: str) -> str:
    """Return a key with escapes for bytes outside UTF-8, since names in tar files may be any bytes."""
    return key if key.isascii() else key.encode(errors="backslashreplace").decode()


def _content(stream: IO[bytes] | ForwardReader, member: TarMember) -> bytes:
    stream.seek(member.offset)
    return read_content(stream, member)


def _problem(error: Exception) -> str:
    text = str(error) if isinstance(error, tarfile.TarError) else f"{type(error).__name__}: {error}"
    return storage.printable(storage.without_secrets(" ".join(text.split())))


@attrs.frozen(kw_only=True)
class ImageIndex:
    """Where the images of shards are; `build_image_index` makes it.

    Args:
        folder: folder of the index.
        by: the name field of images: `key`, or a field of their JSON.
        shards: metadata of each shard in order; of several images with one name, the first shard's counts.
        limits: size limits for reading.
    """

    folder: Path
    by: str
    shards: tuple[AboutShard, ...]
    limits: SampleLimits

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(about.num_records for about in self.shards)

    def fingerprint(self) -> str:
        """Return a hash of the indexed shards and their order."""
        return digest_of([self.by, *([about.shard, about.fingerprint, about.num_records] for about in self.shards)])

    def name_at(self, shard: int, row: int) -> str:
        """Return the name of an image, read from its shard; empty if that cannot be read any more.

        Args:
            shard: its number.
            row: row of its record in the shard.

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
) -> tuple[ImageIndex, dict[str, AboutShard]]:
    """Build the index of images and of samples' names, reading only new shards.

    Args:
        run: for reading the shards.
        folder: local folder of the index, created if missing.
        spec: the options; a search for placeholders reads and hashes images, not only headers.
        reinforced: fingerprints of existing reinforced shards, by path or URL.
        show_progress: show a bar with speed and remaining time.

    Returns:
        The index, and the metadata of every reinforced shard by its path.

    Raises:
        ValueError: if none of the images can be read.
        OSError: if the folder cannot be written.
    """
    # One that is not there has been found out once for all.
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

    def take(unit: ScanUnit, result: AboutShard | SetAside) -> None:
        known[unit.name] = unit.left(result.reason) if isinstance(result, SetAside) else result
        bar.advance(count=known[unit.name].num_records)

    with Progress("indexing", total=len(units), done=len(known), unit="keys", console=screen) as bar:
        run.begin("indexing", num_units=len(units), num_done_before=len(known), then=("matching", "joining"))
        run.do(FunctionWork(function=ScanUnit.read), pending, EachResult[ScanUnit, AboutShard](take))
    every = [known[unit.name] for unit in units]
    index = ImageIndex(folder=folder, by=spec.by, shards=tuple(every[: len(fingerprints)]), limits=spec.sample_limits)
    if not index.num_images:
        problems = (about.problem for about in index.shards if about.problem is not None)
        num_without = sum(about.num_without for about in index.shards)
        problem = next(problems, f"{num_without} samples have no field {spec.by!r}")
        raise ValueError(f"there is no image in the {len(index.shards)} shards from {index.shards[0].shard}: {problem}")
    return index, dict(zip(reinforced, every[len(fingerprints) :], strict=True))

"""Where the images are in one shard, as an index needs it."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import IO

import attrs

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.samples.json_object import parse_object
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.tar import TarMember, read_content, split_name, tar_members
from mobileclip.data.skips import BadSampleError

# Key, extension, start and size of the image, of the caption and of the JSON, the first 8 bytes of the image's SHA-256.
Row = tuple[str | int | None, ...]


@attrs.define
class _Sample:
    """The members under one key that an index needs."""

    key: str
    images: dict[str, TarMember] = attrs.field(factory=dict)
    hash: dict[str, int] = attrs.field(factory=dict)
    text: TarMember | None = None
    json: TarMember | None = None
    metadata: bytes | None = None


@attrs.define(kw_only=True)
class Scan:
    """What an index needs to know of one shard.

    Args:
        shard: its path or address.
        rows: of its images.
        num_without: samples without the field that is the key.
        problem: what ended it before its time.
        unreachable: whether it may be read another time.
    """

    shard: str
    rows: list[Row] = attrs.field(factory=list)
    num_without: int = 0
    problem: str | None = None
    unreachable: bool = False


def scan_shard(shard: str, *, by: str, hashed: bool, limits: SampleLimits = SAMPLE_LIMITS) -> Scan:
    """Return what an index needs to know of a shard, of all that comes before a break, if there is one.

    Args:
        shard: path or address of an uncompressed tar file.
        by: `key`, or the field of the samples' JSON that is the key.
        hashed: whether to read and hash the images.
        limits: of what is read; members beyond them are passed over.
    """
    scan = Scan(shard=shard)
    try:
        with storage.open_read(shard) as stream:
            for sample in _samples(stream, by=by, hashed=hashed, limits=limits):
                extension = next((extension for extension in IMAGE_EXTENSIONS if extension in sample.images), None)
                if extension is None:
                    continue
                key = storable(sample.key) if by == "key" else field_of(sample.metadata, by, limits)
                if key is None:
                    scan.num_without += 1
                    continue
                image = sample.images[extension]
                places = (*_place(sample.text), *_place(sample.json))
                scan.rows.append((key, extension, image.offset, image.size, *places, sample.hash.get(extension)))
    except tarfile.TarError as error:
        scan.problem = storage.printable(error)
    except Exception as error:  # noqa: BLE001 - the last barrier of a shard: whatever its bytes make libraries raise
        scan.problem = storage.printable(storage.without_secrets(f"{type(error).__name__}: {error}"))
        scan.unreachable = isinstance(error, OSError)
    return scan


def _samples(stream: IO[bytes], *, by: str, hashed: bool, limits: SampleLimits) -> Iterator[_Sample]:
    """Yield what is whole: where the archive breaks off, the last sample may lack something."""
    sample: _Sample | None = None
    for member in tar_members(stream):
        name = split_name(member.name)
        if name is None:
            continue
        key, extension = name
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if member.size <= (limits.text_bytes if extension == "json" else limits.member_bytes):
            _enter(sample, extension, member, stream, by=by, hashed=hashed)
    if sample is not None:
        yield sample


def _enter(sample: _Sample, extension: str, member: TarMember, stream: IO[bytes], *, by: str, hashed: bool) -> None:
    if extension in IMAGE_EXTENSIONS:
        sample.images[extension] = member
        if hashed:
            digest = hashlib.sha256(_content(stream, member)).digest()
            sample.hash[extension] = int.from_bytes(digest[:8], "big", signed=True)
    elif extension == "txt":
        sample.text = member
    elif extension == "json":
        sample.json = member
        if by != "key":
            sample.metadata = _content(stream, member)


def _place(member: TarMember | None) -> tuple[int | None, int | None]:
    return (None, None) if member is None else (member.offset, member.size)


def _content(stream: IO[bytes], member: TarMember) -> bytes:
    stream.seek(member.offset)
    return read_content(stream, member)


def field_of(metadata: bytes | None, name: str, limits: SampleLimits) -> str | None:
    """Return a field of a sample's JSON as a key, None where it is not stated.

    Args:
        metadata: the JSON.
        name: of the field.
        limits: of what is read.
    """
    try:
        value = parse_object(metadata or b"{}", "json", limit=limits.text_bytes).get(name)
    except BadSampleError:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return storable(str(value).strip()) or None


def storable(key: str) -> str:
    """Return a key in which what has no place in UTF-8 is spelled out; names in tar files may be any bytes."""
    return key if key.isascii() else key.encode(errors="backslashreplace").decode()

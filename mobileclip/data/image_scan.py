"""Where the images are in one shard, as an index needs it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from typing import IO

import attrs

from mobileclip import storage
from mobileclip.data.image_formats import IMAGE_EXTENSIONS
from mobileclip.data.tar import TarMember, split_name, tar_members

# No image has a gigabyte; a forged header must not make us ask for the memory.
_MAX_BYTES = 2**30

# Key, extension, start and size of the image, start and size of the caption, the first 8 bytes of the image's SHA-256.
Row = tuple[str | int | None, ...]


@attrs.define
class _Sample:
    """The members under one key that an index needs."""

    key: str
    images: dict[str, TarMember] = attrs.field(factory=dict)
    hash: dict[str, int] = attrs.field(factory=dict)
    text: TarMember | None = None
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


def scan_shard(shard: str, *, by: str, hashed: bool) -> Scan:
    """Return what an index needs to know of a shard, of all that comes before a break, if there is one.

    Args:
        shard: path or address of an uncompressed tar file.
        by: `key`, or the field of the samples' JSON that is the key.
        hashed: whether to read and hash the images.
    """
    scan = Scan(shard=shard)
    try:
        with storage.open_read(shard) as stream:
            for sample in _samples(stream, by=by, hashed=hashed):
                extension = next((extension for extension in IMAGE_EXTENSIONS if extension in sample.images), None)
                if extension is None:
                    continue
                key = storable(sample.key) if by == "key" else _field(sample.metadata, by)
                if key is None:
                    scan.num_without += 1
                    continue
                image, text = sample.images[extension], sample.text
                place = (None, None) if text is None else (text.offset, text.size)
                scan.rows.append((key, extension, image.offset, image.size, *place, sample.hash.get(extension)))
    except (tarfile.TarError, EOFError) as error:
        scan.problem = str(error)
    except OSError as error:
        scan.problem = f"{type(error).__name__}: {error}"
        scan.unreachable = True
    return scan


def _samples(stream: IO[bytes], *, by: str, hashed: bool) -> Iterator[_Sample]:
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
        _enter(sample, extension, member, stream, by=by, hashed=hashed)
    if sample is not None:
        yield sample


def _enter(sample: _Sample, extension: str, member: TarMember, stream: IO[bytes], *, by: str, hashed: bool) -> None:
    if member.size > _MAX_BYTES and extension in (*IMAGE_EXTENSIONS, "txt", "json"):
        raise tarfile.ReadError(f"{member.name} is said to have {member.size} bytes")
    if extension in IMAGE_EXTENSIONS:
        sample.images[extension] = member
        if hashed:
            digest = hashlib.sha256(_content(stream, member)).digest()
            sample.hash[extension] = int.from_bytes(digest[:8], "big", signed=True)
    elif extension == "txt":
        sample.text = member
    elif extension == "json" and by != "key":
        sample.metadata = _content(stream, member)


def _content(stream: IO[bytes], member: TarMember) -> bytes:
    stream.seek(member.offset)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(f"the archive ends within {member.name}")
    return content


def _field(metadata: bytes | None, name: str) -> str | None:
    try:
        value = json.loads(metadata or b"{}")[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return storable(str(value).strip()) or None


def storable(key: str) -> str:
    """Return a key in which what has no place in UTF-8 is spelled out; names in tar files may be any bytes."""
    return key if key.isascii() else key.encode(errors="backslashreplace").decode()

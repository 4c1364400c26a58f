"""The directory of a zip file, as far as numpy and torch write them."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

from mobileclip.data.samples.inflate import TooLargeError

_END = struct.Struct("<4sHHHHIIH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 1

STORED, DEFLATED = 0, 8


@attrs.frozen
class ZipEntry:
    """A file in a zip file.

    Args:
        start: of its content, as it is stored.
        stored_size: of its content, as it is stored, in bytes.
        size: of its content, in bytes.
        checksum: CRC-32 of its content.
        method: `STORED` or `DEFLATED`.
    """

    start: int
    stored_size: int
    size: int
    checksum: int
    method: int


def zip_directory(data: bytes, *, limit: int) -> dict[str, ZipEntry]:
    """Return the files in a zip file by name: each once, each in bytes of its own.

    Args:
        data: the zip file.
        limit: number of bytes that all its files may hold, inflated.

    Raises:
        ValueError: if it is none, damaged, holds more, or is not of the simple kind: no comment, no encryption, below
            4 GB.
    """
    if len(data) < _END.size:
        raise ValueError("it is no zip file")
    signature, *_, count, length, position, comment = _END.unpack(data[-_END.size :])
    if signature != b"PK\x05\x06" or comment or position + length + _END.size > len(data):
        raise ValueError("it is no zip file, or not of the simple kind")
    entries: dict[str, ZipEntry] = {}
    start = position
    try:
        for _ in range(count):
            fields = _CENTRAL.unpack_from(data, position)
            name = data[position + _CENTRAL.size : position + _CENTRAL.size + fields[10]]
            if fields[0] != b"PK\x01\x02" or fields[3] & _ENCRYPTED or fields[4] not in (STORED, DEFLATED):
                raise ValueError("it is no zip file of the simple kind")
            if name.decode() in entries:
                raise ValueError("two of its files have one name")
            entries[name.decode()] = ZipEntry(_start(data, fields[16]), fields[8], fields[9], fields[7], fields[4])
            position += _CENTRAL.size + sum(fields[10:13])
    except struct.error:
        raise ValueError("its directory is cut off") from None
    _check(entries.values(), start, limit)
    return entries


def _check(entries: Iterable[ZipEntry], end: int, limit: int) -> None:
    """Refuse files that share bytes, reach into the directory or hold more than they may: forged ones do."""
    after = total = 0
    for entry in sorted(entries, key=lambda one: one.start):
        total += entry.size
        if entry.start < after or entry.start + entry.stored_size > end:
            raise ValueError("two of its files share bytes")
        if entry.method == STORED and entry.stored_size != entry.size:
            raise ValueError("a file has two sizes")
        after = entry.start + entry.stored_size
    if total > limit:
        raise TooLargeError(f"it holds {total:,} bytes, more than the {limit:,} that it may")


def _start(data: bytes, local: int) -> int:
    fields = _LOCAL.unpack_from(data, local)
    if fields[0] != b"PK\x03\x04":
        raise ValueError("its directory points elsewhere than to a file")
    return int(local + _LOCAL.size + fields[9] + fields[10])

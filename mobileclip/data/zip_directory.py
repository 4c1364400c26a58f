"""The directory of a zip file, as far as numpy and torch write them."""

from __future__ import annotations

import struct

import attrs

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


def zip_directory(data: bytes) -> dict[str, ZipEntry]:
    """Return the files in a zip file by name.

    Raises:
        ValueError: if it is none, or not of the simple kind: no comment, no encryption, below 4 GB.
    """
    if len(data) < _END.size:
        raise ValueError("it is no zip file")
    signature, *_, count, length, position, comment = _END.unpack(data[-_END.size :])
    if signature != b"PK\x05\x06" or comment or position + length + _END.size > len(data):
        raise ValueError("it is no zip file, or not of the simple kind")
    entries: dict[str, ZipEntry] = {}
    try:
        for _ in range(count):
            fields = _CENTRAL.unpack_from(data, position)
            name = data[position + _CENTRAL.size : position + _CENTRAL.size + fields[10]]
            if fields[0] != b"PK\x01\x02" or fields[3] & _ENCRYPTED or fields[4] not in (STORED, DEFLATED):
                raise ValueError("it is no zip file of the simple kind")
            entries[name.decode()] = ZipEntry(_start(data, fields[16]), fields[8], fields[9], fields[7], fields[4])
            position += _CENTRAL.size + sum(fields[10:13])
    except struct.error:
        raise ValueError("its directory is cut off") from None
    return entries


def _start(data: bytes, local: int) -> int:
    fields = _LOCAL.unpack_from(data, local)
    if fields[0] != b"PK\x03\x04":
        raise ValueError("its directory points elsewhere than to a file")
    return int(local + _LOCAL.size + fields[9] + fields[10])

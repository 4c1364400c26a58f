"""The zip of an exported program, read so strictly that every reader of zips must see the same members in it.

Readers differ in what they make of names that come twice, of other letter case, of headers that contradict each other,
and of what lies before, between and behind members. PyTorch writes none of that, so a file that holds any is refused.

The checks of `tensor_files.zips` are not enough here. What it finds is read by this library alone, at the places that
it found. This file is opened once more, by PyTorch's own reader, which must find the same bytes under the same names.
"""

from __future__ import annotations

import re
import struct
from typing import IO

import attrs

from mobileclip.storage import printable

# As PKWARE's APPNOTE.TXT has them, without their signatures.
_END, _END_64, _LOCATOR_64 = struct.Struct("<4sHHHHIIH"), struct.Struct("<4sQHHIIQQQQ"), struct.Struct("<4sIQI")
_CENTRAL, _LOCAL, _DESCRIPTOR = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H"), struct.Struct("<4s3I")
_HAS_DESCRIPTOR = 8
_FLAGS = _HAS_DESCRIPTOR | 0x800  # sizes stand behind the data; names are UTF-8
_MOST_BYTES, _MOST_MEMBERS = 2**32 - 2, 20_000
_NAME = re.compile(r"\w[\w.-]{0,199}/([a-z_.]{1,20}/)?([a-z_.]{1,20}/)?[\w.]{1,200}", re.ASCII)


@attrs.frozen(kw_only=True)
class Member:
    """One file in an archive, stored as it is.

    Args:
        start: of its bytes, in the archive.
        num_bytes: how many they are.
    """

    start: int
    num_bytes: int


def read_members(stream: IO[bytes]) -> dict[str, Member]:
    """Return what an archive holds, by name without the folder that all of it is in.

    Every byte of the file is of a member or of what describes it, once; nothing is compressed.

    Raises:
        ValueError: if the file is no zip, or anything in it could be read in two ways.
    """
    size = stream.seek(0, 2)
    if size > _MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, and archives of up to 4 GiB are known here")
    count, start, end = _directory(stream, size)
    members: dict[str, Member] = {}
    roots = set()
    expected = 0
    place = start
    for _ in range(count):
        name, header = _central(stream, place, end)
        place += _CENTRAL.size + len(name)
        member, expected = _local(stream, name, header, expected)
        root, _, inner = name.partition("/")
        roots.add(root)
        if inner in members:
            raise ValueError(f"{printable(name)} comes twice in it")
        members[inner] = member
    if place != end or expected != start:
        raise ValueError("it holds bytes that are of none of its members")
    if len(roots) != 1:
        raise ValueError(f"its members are in {len(roots)} folders, expected one")
    return members


def _read(stream: IO[bytes], place: int, layout: struct.Struct, signature: bytes) -> tuple[int, ...]:
    """Return what a header says, without its signature."""
    if place < 0:
        raise ValueError("it is no zip, or its end is missing")
    stream.seek(place)
    data = stream.read(layout.size)
    if len(data) != layout.size or not data.startswith(signature):
        raise ValueError("it is no zip, or its end is missing, or something lies between its parts")
    return layout.unpack(data)[1:]


def _directory(stream: IO[bytes], size: int) -> tuple[int, int, int]:
    """Return the number of members, and where the list of them begins and ends."""
    place = size - _END.size
    ends = _read(stream, place, _END, b"PK\x05\x06")
    count, num_bytes, start = ends[3:6]
    if ends != (0, 0, count, count, num_bytes, start, 0):
        raise ValueError("its end names several disks, or holds a comment")
    end = start + num_bytes
    if end != place:
        # PyTorch writes the longer form always, which must say the same.
        place -= _LOCATOR_64.size
        if _read(stream, place, _LOCATOR_64, b"PK\x06\x07") != (0, place - _END_64.size, 1):
            raise ValueError("it has two ends, or a part that does not say where it is")
        place -= _END_64.size
        longer = _read(stream, place, _END_64, b"PK\x06\x06")
        if longer[0] != _END_64.size - 12 or longer[3:] != (0, 0, count, count, num_bytes, start) or end != place:
            raise ValueError("its two ends contradict each other")
    if not 0 < count <= _MOST_MEMBERS:
        raise ValueError(f"it holds {count} members, and up to {_MOST_MEMBERS} are known here")
    return count, start, end


def _central(stream: IO[bytes], place: int, end: int) -> tuple[str, tuple[int, ...]]:
    """Return a member's name, and what the list of members says of it."""
    header = _read(stream, place, _CENTRAL, b"PK\x01\x02")
    flags, method, num_stored, num_bytes, num_name, num_extra, num_comment, disk = header[2:4] + header[7:13]
    name = stream.read(num_name).decode("ascii", errors="replace")
    if place + _CENTRAL.size + num_name > end or not _NAME.fullmatch(name):
        raise ValueError(f"it holds {printable(name)}, which is no name of an exported program's part")
    if flags & ~_FLAGS or method or num_stored != num_bytes or num_extra or num_comment or disk:
        raise ValueError(f"{printable(name)} is compressed or encrypted, or has more to say than a name")
    return name, header


def _local(stream: IO[bytes], name: str, header: tuple[int, ...], expected: int) -> tuple[Member, int]:
    """Return a member, and where the next must begin; its own header must say what the list of members does."""
    flags, sizes, place = header[2], header[6:9], header[15]
    if place != expected:
        raise ValueError(f"something lies in front of {printable(name)}, or over it")
    local = _read(stream, place, _LOCAL, b"PK\x03\x04")
    num_name, num_extra = local[8:10]
    is_described = bool(flags & _HAS_DESCRIPTOR)
    if local[1:3] != header[2:4] or local[5:8] not in ([(0, 0, 0), sizes] if is_described else [sizes]):
        raise ValueError(f"the two headers of {printable(name)} contradict each other")
    if stream.read(num_name) != name.encode():
        raise ValueError(f"{printable(name)} has another name in its own header")
    member = Member(start=place + _LOCAL.size + num_name + num_extra, num_bytes=sizes[2])
    following = member.start + member.num_bytes
    if is_described:
        if _read(stream, following, _DESCRIPTOR, b"PK\x07\x08") != sizes:
            raise ValueError(f"what stands behind {printable(name)} contradicts its header")
        following += _DESCRIPTOR.size
    return member, following

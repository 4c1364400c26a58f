"""Tar files as shards need them: walked and written several times faster than `tarfile` does."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from typing import IO, Any, NamedTuple, TypeVar, cast

from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits, TooLargeError
from mobileclip.storage import printable

Member = TypeVar("Member")

BLOCK = 512
# A name longer than this is no name: forged headers must not make us read the whole file.
_MAX_EXTENDED_BYTES = 1 << 20
# Names, links, sizes and more, before one member.
_MAX_EXTENDED_HEADERS = 8
_MAX_PAX_RECORDS = 1000
_MAX_OCTAL_SIZE = 8**11 - 1
# No file is larger, and positions in files are not either.
_MAX_SIZE = 2**60
_ZEROS = bytes(BLOCK)
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0")
START_BYTES = 10
"""As many as tell whether a file is compressed."""
# What a header claims is read in pieces: memory is taken for what is there.
_PIECE_BYTES = 1 << 22
# What a small file may inflate to whatever the ratio.
_SLACK_BYTES = 1 << 26
_READ_ONLY = 0o444
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and pipes
_EXTENDED = (b"L", b"K", b"x", b"g")
_SPARSE = b"S"
_ANEW = "write the archive again"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_SIZE = re.compile(rb"[0-9]{1,18}")
_PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=\n]*)=")
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
# Folders and files that describe a shard, by webdataset's convention.
_META = re.compile(r"__[^/]*__(/|$)")


class TarMember(NamedTuple):
    """A regular file in a tar file.

    Args:
        name: as it is stored.
        offset: offset of the first byte of its content.
        size: size of its content, in bytes.
    """

    name: str
    offset: int
    size: int


class ForwardReader:
    """A stream that cannot be moved, such as a program's output, moved by reading on.

    Args:
        stream: read from where it stands, which counts as the start; fewer bytes than asked for mean its end.
        ahead: what was read of it before, which comes first.
    """

    def __init__(self, stream: IO[bytes] | InflatedFile, ahead: bytes = b"") -> None:
        self._stream = stream
        self.position = 0
        self._ahead = ahead

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or those that are left."""
        content, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(content) < size:
            rest = self._stream.read(size - len(content))
            content = content + rest if content else rest
        self.position += len(content)
        return content

    def seek(self, position: int) -> int:
        """Move to a position, which must not lie behind."""
        assert position >= self.position, "a stream that moves forward alone"
        while self.position < position and self.read(min(position - self.position, _PIECE_BYTES)):
            pass
        return self.position


_OPENED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda source: gzip.GzipFile(fileobj=source),
    b"BZ": bz2.BZ2File,
    b"\xfd7": partial(lzma.LZMAFile, format=lzma.FORMAT_XZ),
}


class InflatedFile:
    """A file that gzip, bzip2 or xz compressed, read on from its start.

    Args:
        stream: the compressed file.
        start: its first bytes, which were read before.
        inflation: how many times the bytes of the file may come out of it.
    """

    def __init__(self, stream: IO[bytes], start: bytes, *, inflation: int) -> None:
        self._compressed = ForwardReader(stream, start)
        self._file = _OPENED[start[:2]](cast("IO[bytes]", self._compressed))
        self._inflation, self._num_inflated = inflation, 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or those that are left.

        Raises:
            TooLargeError: if more comes out than the file may hold.
            EOFError: if the file is cut.
            OSError: if it is damaged.
        """
        pieces = []
        while size and (piece := self._next(min(size, _PIECE_BYTES))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        try:
            piece: bytes = self._file.read(size)
        except (zlib.error, lzma.LZMAError) as error:
            raise OSError(f"the compressed file is damaged: {error}") from None
        self._num_inflated += len(piece)
        if self._num_inflated > self._inflation * self._compressed.position + _SLACK_BYTES:
            raise TooLargeError(
                f"the compressed file inflates to more than {self._inflation} times its size; if it is no bomb, "
                "raise `inflation` in the limits, or decompress it first"
            )
        return piece


def read_members(stream: IO[bytes], limits: SampleLimits = SAMPLE_LIMITS) -> Iterator[tuple[str, bytes | None]]:
    """Yield name and content of the regular files of a tar file in order, reading on without a step back.

    Args:
        stream: a tar file, compressed or not.
        limits: a file with more than `member_bytes` is passed over, and has None for its content.

    Raises:
        tarfile.ReadError: if it is no tar file, damaged, or ends without its end mark.
        ValueError: if it is compressed and inflates to more than the limits allow.
        EOFError: if it is compressed and cut.
        OSError: if it is compressed and damaged.
    """
    forward = forward_reader(stream, limits, seeks=False)
    for member in tar_members(forward):
        yield member.name, read_content(forward, member) if member.size <= limits.member_bytes else None


def forward_reader(
    stream: IO[bytes], limits: SampleLimits = SAMPLE_LIMITS, *, seeks: bool = True
) -> IO[bytes] | ForwardReader:
    """Return what moves forward over a tar file from its start, compressed or not.

    Args:
        stream: which stands at its start.
        limits: limits of what is inflated.
        seeks: whether the stream itself can be moved; then it is returned where nothing is compressed.
    """
    start = stream.read(START_BYTES)
    if is_compressed(start):
        return ForwardReader(InflatedFile(stream, start, inflation=limits.inflation))
    return stream if seeks else ForwardReader(stream, start)


def member_key(stream: IO[bytes], start: int) -> str:
    """Return the key of a member by where its content begins; of a long name its beginning, or nothing.

    Args:
        stream: an uncompressed tar file.
        start: start of the content, in bytes.
    """
    stream.seek(start - BLOCK)
    parts = split_name(_name(stream.read(BLOCK)))
    return "" if parts is None else parts[0]


def is_compressed(start: bytes) -> bool:
    """Return whether a tar file that starts with these bytes is compressed, by gzip, bzip2 or xz."""
    return _COMPRESSED.match(start) is not None


def read_content(stream: IO[bytes] | ForwardReader, member: TarMember) -> bytes:
    """Return the content of a member, which begins where the stream stands.

    Raises:
        tarfile.ReadError: if the archive ends within it.
    """
    content = read_up_to(stream, member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(f"the archive ends within {printable(member.name)}")
    return content


def read_up_to(stream: IO[bytes] | ForwardReader, size: int) -> bytes:
    """Return the next `size` bytes, or those that are left; memory is taken for what is there, not for what is said."""
    content = stream.read(min(size, _PIECE_BYTES))
    if len(content) == size:
        return content
    pieces = [content]
    missing = size - len(content)
    while missing and (content := stream.read(min(missing, _PIECE_BYTES))):
        pieces.append(content)
        missing -= len(content)
    return b"".join(pieces)


def tar_members(stream: IO[bytes] | ForwardReader) -> Iterator[TarMember]:
    """Yield the regular files of a tar file in order; between two of them the stream may be read and moved.

    Knows the headers of ustar, GNU and pax archives.

    Args:
        stream: an uncompressed tar file that can be moved, forward at least.

    Raises:
        tarfile.ReadError: if it is no tar file, damaged, compressed, or ends without its end mark.
    """
    offset = num_extended = 0
    name: str | None = None
    size: int | None = None
    while True:
        stream.seek(offset)
        header = stream.read(BLOCK)
        if header == _ZEROS:
            return
        _check(header, offset)
        offset += BLOCK
        kind, stored = header[156:157], _number(header[124:136])
        if kind in _EXTENDED:
            num_extended += 1
            if num_extended > _MAX_EXTENDED_HEADERS:
                raise tarfile.ReadError(f"more than {_MAX_EXTENDED_HEADERS} extended headers stand before one member")
            if kind == b"L":
                name = _decode(_extra(stream, stored))
            elif kind == b"x":
                name, size = _pax(_extra(stream, stored), name, size)
        elif kind == _SPARSE:
            raise tarfile.ReadError(f"sparse files are not supported; {_ANEW}")
        else:
            stored = stored if size is None else size
            if kind in _REGULAR:
                yield TarMember(_name(header) if name is None else name, offset, stored)
            elif kind in _WITHOUT_CONTENT:
                stored = 0  # whatever they say
            name = size = None
            num_extended = 0
        offset += -(-stored // BLOCK) * BLOCK


def write_member(stream: IO[bytes], name: str, content: bytes) -> None:
    """Write a regular file to a tar file; equal arguments give equal bytes.

    Args:
        stream: as many files after one another as wanted, then `write_end`.
        name: name of the file.
        content: content of the file.

    Raises:
        ValueError: if the name has a zero byte, where it would end for those who read it.
    """
    if "\0" in name:
        raise ValueError(f"{name!r} cannot name a file in a tar file: names end at a zero byte there")
    stream.write(_header(name, len(content)))
    stream.write(content)
    stream.write(_ZEROS[: -len(content) % BLOCK])


def write_end(stream: IO[bytes]) -> None:
    """Write the end mark of a tar file."""
    stream.write(_ZEROS + _ZEROS)


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the extension of a member, or None of what belongs to no sample, as webdataset has it.

    They meet at the first dot behind the last slash.
    """
    match = _NAME.fullmatch(name.removeprefix("./"))
    if match is None or _META.match(match[1]):
        return None
    return match[1], match[2].lower()


def by_key(
    members: Iterable[Member], name: Callable[[Member], str]
) -> Iterator[tuple[str, Iterator[tuple[str, Member]]]]:
    """Yield the keys of a shard in order, each with the extensions of its members and these, as they come.

    What belongs to no sample is left out. The members of one key are there until the next key is asked for.

    Args:
        members: members of the shard, as they are stored.
        name: returns what one is called.
    """
    known = ((*parts, member) for member in members if (parts := split_name(name(member))) is not None)
    for key, own in groupby(known, itemgetter(0)):
        yield key, map(itemgetter(1, 2), own)


@cache
def _template() -> bytes:
    """Return the header of an empty file without a name, with spaces in place of the checksum."""
    info = tarfile.TarInfo()
    info.mode = _READ_ONLY
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header[:148] + b" " * 8 + header[156:]


def _header(name: str, size: int) -> bytes:
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > 100 or size > _MAX_OCTAL_SIZE:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, _READ_ONLY
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    header = bytearray(_template())
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def _check(header: bytes, offset: int) -> None:
    if len(header) < BLOCK:
        raise tarfile.ReadError(f"the archive ends before byte {offset + BLOCK} without its end mark")
    if offset == 0 and is_compressed(header):
        raise tarfile.ReadError("the archive is compressed; unpack it with gunzip, bunzip2 or unxz")
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != _number(header[148:156]):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged: its checksum differs")


def _number(field: bytes) -> int:
    """Return a number of a header: octal digits alone, or GNU's form for what they cannot hold."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
    else:
        match = _OCTAL.fullmatch(field.split(b"\0", 1)[0])
        if match is None:
            raise tarfile.ReadError(f"a header holds {field!r}, expected an octal number")
        number = int(match[1] or b"0", 8)
    if number > _MAX_SIZE:
        raise tarfile.ReadError(f"a header says {number}, which is larger than any file")
    return number


def _extra(stream: IO[bytes] | ForwardReader, size: int) -> bytes:
    if size > _MAX_EXTENDED_BYTES:
        raise tarfile.ReadError(f"a member's extended header takes {size} bytes")
    return read_content(stream, TarMember("an extended header", 0, size))


def _pax(records: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Return name and size as the records, `LENGTH KEY=VALUE` and a line break each, say."""
    position = 0
    for _ in range(_MAX_PAX_RECORDS):
        if position >= len(records) or not records[position]:
            return name, size
        match = _PAX_RECORD.match(records, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(records):
            raise tarfile.ReadError("a pax header is malformed")
        key, value = match[2], records[match.end() : end - 1]
        if key == b"path":
            name = value.decode(errors="surrogateescape")
        elif key == b"size" and _PAX_SIZE.fullmatch(value):
            size = int(value)
        elif key == b"size" or key.startswith(b"GNU.sparse"):
            raise tarfile.ReadError(f"a pax header says {key!r} {value[:40]!r}: no size, or a sparse file; {_ANEW}")
        position = end
    raise tarfile.ReadError(f"a pax header has more than {_MAX_PAX_RECORDS} records")


def _name(header: bytes) -> str:
    name = _decode(header[:100])
    prefix = _decode(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decode(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")

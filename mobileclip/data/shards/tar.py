"""Reading and writing tar files of shards, several times faster than `tarfile`."""

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
# Maximum length of a plausible name: a forged header must not make the reader load the whole file.
_MAX_EXTENDED_BYTES = 1 << 20
# Maximum number of extended headers (names, links, sizes and more) before one member.
_MAX_EXTENDED_HEADERS = 8
_MAX_PAX_RECORDS = 1000
_MAX_OCTAL_SIZE = 8**11 - 1
# Larger than any file or file offset.
_MAX_SIZE = 2**60
_ZEROS = bytes(BLOCK)
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0")
START_BYTES = 10
"""Number of bytes that show whether a file is compressed."""
# Content is read in pieces, so that memory is allocated for real bytes only, not for a claimed size.
_PIECE_BYTES = 1 << 22
# Size to which a small file may inflate at any ratio.
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
        name: stored name of the file.
        offset: offset of the first byte of the content.
        size: size of the content, in bytes.
    """

    name: str
    offset: int
    size: int


class ForwardReader:
    """A reader that skips forward by reading, for streams without `seek`, such as a program's output.

    Args:
        stream: stream whose current position counts as the start; a short read means the end of the stream.
        ahead: bytes that were already read from the stream and come first.
    """

    def __init__(self, stream: IO[bytes] | InflatedFile, ahead: bytes = b"") -> None:
        self._stream = stream
        self.position = 0
        self._ahead = ahead

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or the remaining bytes if fewer are left."""
        content, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(content) < size:
            rest = self._stream.read(size - len(content))
            content = content + rest if content else rest
        self.position += len(content)
        return content

    def seek(self, position: int) -> int:
        """Move forward to a position, which must not be before the current position."""
        assert position >= self.position, "the stream only moves forward"
        while self.position < position and self.read(min(position - self.position, _PIECE_BYTES)):
            pass
        return self.position


_OPENED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda source: gzip.GzipFile(fileobj=source),
    b"BZ": bz2.BZ2File,
    b"\xfd7": partial(lzma.LZMAFile, format=lzma.FORMAT_XZ),
}


class InflatedFile:
    """A gzip, bzip2 or xz file that is decompressed sequentially.

    Args:
        stream: the compressed file.
        start: first bytes of the file, which were already read.
        inflation: maximum ratio of the decompressed to the compressed size.
    """

    def __init__(self, stream: IO[bytes], start: bytes, *, inflation: int) -> None:
        self._compressed = ForwardReader(stream, start)
        self._file = _OPENED[start[:2]](cast("IO[bytes]", self._compressed))
        self._inflation, self._num_inflated = inflation, 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or the remaining bytes if fewer are left.

        Raises:
            TooLargeError: if the decompressed size exceeds the limit.
            EOFError: if the file is truncated.
            OSError: if the file is damaged.
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
                f"the compressed file inflates to more than {self._inflation} times its size; if you trust the "
                "file, increase `inflation` of SampleLimits, or decompress the file first"
            )
        return piece


def read_members(stream: IO[bytes], limits: SampleLimits = SAMPLE_LIMITS) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the content of the regular files of a tar file in order, in one sequential pass.

    Args:
        stream: a tar file, compressed or not.
        limits: limits on the members; a file larger than `member_bytes` is skipped and has None as its content.

    Raises:
        tarfile.ReadError: if the stream is not a tar file, is damaged, or ends without an end mark.
        ValueError: if a compressed file inflates beyond the limits.
        EOFError: if a compressed file is truncated.
        OSError: if a compressed file is damaged.
    """
    forward = forward_reader(stream, limits, seeks=False)
    for member in tar_members(forward):
        yield member.name, read_content(forward, member) if member.size <= limits.member_bytes else None


def forward_reader(
    stream: IO[bytes], limits: SampleLimits = SAMPLE_LIMITS, *, seeks: bool = True
) -> IO[bytes] | ForwardReader:
    """Return a reader that moves forward over a compressed or uncompressed tar file from its start.

    Args:
        stream: tar file, positioned at its start.
        limits: limits on decompression.
        seeks: whether the stream supports `seek`; if so, an uncompressed stream is returned without a wrapper.
    """
    start = stream.read(START_BYTES)
    if is_compressed(start):
        return ForwardReader(InflatedFile(stream, start, inflation=limits.inflation))
    return stream if seeks else ForwardReader(stream, start)


def member_key(stream: IO[bytes], start: int) -> str:
    """Return the key of the member whose content starts at `start`; for a long key, its beginning or an empty string.

    Args:
        stream: an uncompressed tar file.
        start: offset of the content, in bytes.
    """
    stream.seek(start - BLOCK)
    parts = split_name(_name(stream.read(BLOCK)))
    return "" if parts is None else parts[0]


def is_compressed(start: bytes) -> bool:
    """Return whether a tar file with these first bytes is compressed by gzip, bzip2 or xz."""
    return _COMPRESSED.match(start) is not None


def read_content(stream: IO[bytes] | ForwardReader, member: TarMember) -> bytes:
    """Return the content of a member that starts at the current position of the stream.

    Raises:
        tarfile.ReadError: if the archive ends within the member.
    """
    content = read_up_to(stream, member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(f"the archive ends within {printable(member.name)}")
    return content


def read_up_to(stream: IO[bytes] | ForwardReader, size: int) -> bytes:
    """Return up to `size` bytes; memory is allocated only for bytes that exist, not for the claimed size."""
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
    """Yield the regular files of a tar file in order; between two files, the caller may read and seek the stream.

    Headers may be in ustar, GNU or pax format.

    Args:
        stream: an uncompressed tar file with a `seek` that moves at least forward.

    Raises:
        tarfile.ReadError: if the stream is not a tar file, is damaged or compressed, or ends without an end mark.
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
                raise tarfile.ReadError(f"more than {_MAX_EXTENDED_HEADERS} extended headers precede one member")
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
                stored = 0  # whatever size the header claims
            name = size = None
            num_extended = 0
        offset += -(-stored // BLOCK) * BLOCK


def write_member(stream: IO[bytes], name: str, content: bytes) -> None:
    """Write a regular file to a tar file; equal arguments give equal bytes.

    Args:
        stream: output stream; after the last file, call `write_end`.
        name: name of the file.
        content: content of the file.

    Raises:
        ValueError: if the name contains a zero byte, at which readers would end the name.
    """
    if "\0" in name:
        raise ValueError(f"{name!r} cannot be a file name in a tar file: it contains a zero byte, which ends a name")
    stream.write(_header(name, len(content)))
    stream.write(content)
    stream.write(_ZEROS[: -len(content) % BLOCK])


def write_end(stream: IO[bytes]) -> None:
    """Write the end mark of a tar file."""
    stream.write(_ZEROS + _ZEROS)


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension like webdataset; return None for members outside any sample.

    The name is split at the first dot after the last slash.
    """
    match = _NAME.fullmatch(name.removeprefix("./"))
    if match is None or _META.match(match[1]):
        return None
    return match[1], match[2].lower()


def by_key(
    members: Iterable[Member], name: Callable[[Member], str]
) -> Iterator[tuple[str, Iterator[tuple[str, Member]]]]:
    """Yield the keys of a shard in order, each with an iterator over pairs of extension and member.

    Members outside any sample are left out. Consume the members of a key before you request the next key.

    Args:
        members: members of the shard in stored order.
        name: function that returns the name of a member.
    """
    known = ((*parts, member) for member in members if (parts := split_name(name(member))) is not None)
    for key, own in groupby(known, itemgetter(0)):
        yield key, map(itemgetter(1, 2), own)


@cache
def _template() -> bytes:
    """Return the header of an empty, unnamed file with spaces in place of the checksum."""
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
    """Parse a number in a header: octal digits, or GNU's binary form for larger numbers."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
    else:
        match = _OCTAL.fullmatch(field.split(b"\0", 1)[0])
        if match is None:
            raise tarfile.ReadError(f"a header contains {field!r}, expected an octal number")
        number = int(match[1] or b"0", 8)
    if number > _MAX_SIZE:
        raise tarfile.ReadError(f"a header contains the number {number}, which is larger than any file")
    return number


def _extra(stream: IO[bytes] | ForwardReader, size: int) -> bytes:
    if size > _MAX_EXTENDED_BYTES:
        raise tarfile.ReadError(f"a member's extended header has {size} bytes, more than 1,048,576")
    return read_content(stream, TarMember("an extended header", 0, size))


def _pax(records: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Return the name and the size from pax records, which are lines of the form `LENGTH KEY=VALUE`."""
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
            raise tarfile.ReadError(f"a pax header has {key!r} {value[:40]!r}: invalid size or sparse file; {_ANEW}")
        position = end
    raise tarfile.ReadError(f"a pax header has more than {_MAX_PAX_RECORDS} records")


def _name(header: bytes) -> str:
    name = _decode(header[:100])
    prefix = _decode(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decode(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")

"""The directory of a zip file, as numpy and torch write them: every name once, every file in bytes of its own."""

from __future__ import annotations

import struct
import zipfile
from typing import IO

import attrs

from mobileclip.tensor_files.errors import CheckpointError, shown

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL, _LENGTHS = struct.Struct("<4s5H3I2H"), struct.Struct("<2H")
_UNSAID = 0xFFFFFFFF
_MAX_DIRECTORY_BYTES = 1 << 24
_ENCRYPTED, _UTF_8 = 1, 0x800


@attrs.frozen
class Member:
    """A file in a zip file.

    Args:
        start: of its content, as it is stored.
        stored_size: of its content, as it is stored, in bytes.
        size: of its content, in bytes.
        checksum: CRC-32 of its content.
        is_deflated: whether it is compressed.
    """

    start: int
    stored_size: int
    size: int
    checksum: int
    is_deflated: bool


def zip_members(file: IO[bytes], num_bytes: int, *, directory_bytes: int = _MAX_DIRECTORY_BYTES) -> dict[str, Member]:
    """Return the files in a zip file by name.

    Args:
        file: the zip file.
        num_bytes: its size.
        directory_bytes: that its directory may have; a larger one is not read.

    Raises:
        CheckpointError: if it is none, damaged, or has what no file of weights or embeddings has: a comment, a name
            twice, files that share bytes, encryption, or a method of compression other than deflate.
    """
    count, directory = _directory(file, num_bytes, directory_bytes)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError) as error:
        raise CheckpointError(f"its directory is damaged ({shown(str(error))})") from None
    if len(infos) != count:
        raise CheckpointError(f"its directory names {len(infos):,} files, and says that it names {count:,}")
    found: dict[str, Member] = {}
    for info in infos:
        if info.filename in found:
            raise CheckpointError(f"{shown(info.filename)} is there twice")
        found[info.filename] = _member(file, info)
    end = 0
    for member in sorted(found.values(), key=lambda member: member.start):
        if member.start < end:
            raise CheckpointError("files in it share bytes")
        end = member.start + member.stored_size
    if end > directory:
        raise CheckpointError("files in it share bytes with its directory")
    return found


def _directory(file: IO[bytes], num_bytes: int, directory_bytes: int) -> tuple[int, int]:
    """Return how many files a directory says it names, and its place; one of more bytes than it may have is refused."""
    tail_bytes = min(num_bytes, _END_64.size + _LOCATOR.size + _END.size)
    file.seek(num_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise CheckpointError("it is no zip file, or it is cut off")
    _, _, _, _, count, size, _, comment = _END.unpack(tail[-_END.size :])
    end = num_bytes - _END.size
    if comment:
        raise CheckpointError("it is a zip file with a comment, which nothing that writes tensors leaves")
    if len(tail) == _END_64.size + _LOCATOR.size + _END.size and tail[_END_64.size :][:4] == b"PK\x06\x07":
        # Python looks for the longer form here, whatever the locator says.
        longer = _END_64.unpack(tail[: _END_64.size])
        count, size = longer[7], max(size if size != _UNSAID else 0, longer[8])
        end = num_bytes - len(tail)
    if size > directory_bytes:
        raise CheckpointError(f"its directory has {size:,} bytes, and at most {directory_bytes:,} are read")
    return count, end - size


def _member(file: IO[bytes], info: zipfile.ZipInfo) -> Member:
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if info.flag_bits & _ENCRYPTED or not (is_deflated or info.compress_type == zipfile.ZIP_STORED):
        raise CheckpointError(
            f"{shown(info.filename)} in it is encrypted, or compressed by another method than deflate"
        )
    if not is_deflated and info.compress_size != info.file_size:
        raise CheckpointError(f"{shown(info.filename)} in it has two sizes")
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8 else "cp437")
    file.seek(max(0, info.header_offset))
    header = file.read(_LOCAL.size + len(name))
    if header[:4] != b"PK\x03\x04" or header[_LOCAL.size :] != name or info.header_offset < 0:
        raise CheckpointError(f"its directory points elsewhere than to {shown(info.filename)}")
    num_name, num_extra = _LENGTHS.unpack_from(header, _LOCAL.size - _LENGTHS.size)
    if num_name != len(name):
        raise CheckpointError(f"{shown(info.filename)} in it has two names")
    start = info.header_offset + _LOCAL.size + num_name + num_extra
    return Member(start, info.compress_size, info.file_size, info.CRC, is_deflated)

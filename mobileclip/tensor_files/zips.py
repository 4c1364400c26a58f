"""The zip archives that torch writes: one folder, every name once, nothing compressed, nothing overlapping."""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

import attrs

from mobileclip.tensor_files.errors import CheckpointError, shown

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_DIRECTORY_BYTES = 1 << 24
_ENCRYPTED = 1


@attrs.frozen
class Member:
    """A file in an archive: where its bytes start, and how many there are."""

    start: int
    size: int


def members(file: BinaryIO, num_bytes: int) -> dict[str, Member]:
    """Return the files in an archive by their names below its one folder.

    Args:
        file: the archive.
        num_bytes: its size.

    Raises:
        CheckpointError: if it is no archive of the kind that torch writes.
    """
    _check_directory(file, num_bytes)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError) as error:
        raise CheckpointError(f"its directory is damaged ({shown(str(error))})") from None
    folders = {info.filename.partition("/")[0] for info in infos}
    if len({info.filename for info in infos}) != len(infos) or len(folders) != 1:
        raise CheckpointError("a name is in the archive twice, or there are several folders in it")
    found = {info.filename.partition("/")[2]: _member(file, info) for info in infos}
    end = 0
    for member in sorted(found.values(), key=lambda member: member.start):
        if member.start < end:
            raise CheckpointError("files in the archive overlap")
        end = member.start + member.size
    if end > num_bytes:
        raise CheckpointError("it is cut off")
    return found


def _check_directory(file: BinaryIO, num_bytes: int) -> None:
    """Refuse a directory of more bytes than any checkpoint needs, before it is read."""
    tail_bytes = min(num_bytes, _END.size + _LOCATOR.size)
    file.seek(num_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise CheckpointError("it is damaged: cut off, or no archive that torch wrote")
    size = _END.unpack(tail[-_END.size :])[5]
    if len(tail) == _END.size + _LOCATOR.size and tail[:4] == b"PK\x06\x07":
        place = _LOCATOR.unpack(tail[: _LOCATOR.size])[2]
        if place + _END_64.size > num_bytes:
            raise CheckpointError("its directory is damaged")
        file.seek(place)
        size = max(size if size != 0xFFFFFFFF else 0, _END_64.unpack(file.read(_END_64.size))[8])
    if size > _MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"its directory has {size:,} bytes, and at most {_MAX_DIRECTORY_BYTES:,} are read")


def _member(file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    name = shown(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED or info.compress_size != info.file_size:
        raise CheckpointError(
            f"{name} in it is compressed or encrypted, which torch does not do; unpack and save again"
        )
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    fields = _LOCAL.unpack(header) if len(header) == _LOCAL.size else (b"",)
    if fields[0] != b"PK\x03\x04" or file.read(fields[9]) != info.orig_filename.encode(
        "utf-8" if info.flag_bits & 0x800 else "cp437"
    ):
        raise CheckpointError(f"its directory points elsewhere than to {name}")
    return Member(start=info.header_offset + _LOCAL.size + fields[9] + fields[10], size=info.file_size)

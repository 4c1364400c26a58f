"""The compact record: a shard member with one sample's teacher embeddings, readable row by row.

All numbers are little-endian. `docs/formats.md` describes the byte layout.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileclip.data.samples.limits import MAX_DIM
from mobileclip.data.samples.readers import EmbeddingRows, Embeddings
from mobileclip.data.skips import BadSampleError
from mobileclip.hardware import StoredPrecision

MAGIC = b"MCRF"
VERSION = 1
# Far above the needs of a sample, but low enough that a forged header costs little.
MAX_HEADER_BYTES = 1 << 20

# Magic, version, size of the header, number of rows, and checksum of everything except the checksum and the rows.
_PREAMBLE = struct.Struct("<4sHII")
_CHECKSUM = struct.Struct("<I")
_START = _PREAMBLE.size + _CHECKSUM.size
_TABLE = np.dtype([("length", "<u4"), ("checksum", "<u4")])
_SCALE = struct.Struct("<f")
_LARGEST = 127
_SMALLEST_SCALE, _GREATEST_SCALE = 2.0**-100, 2.0**121
# 127 times a scale with so few bits is exact in float32, so a decoded record is encoded to the same bits.
_SCALE_BITS = 16


class CompactRecord(EmbeddingRows):
    """A compact record, which is checked at construction and decoded row by row.

    Args:
        data: content of the member.

    Raises:
        BadSampleError: if `data` is not a record, or the record is truncated, damaged or of an unsupported version;
            reason `bad_record`.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _START or data[:4] != MAGIC:
            raise _bad("the member does not start with the record's magic bytes")
        _, version, header_length, num_rows = _PREAMBLE.unpack_from(data)
        if version != VERSION:
            raise _bad(
                f"the record has version {version}, but this library reads version {VERSION}; try a newer library"
            )
        header_end = _START + header_length
        rows_start = header_end + num_rows * _TABLE.itemsize
        if rows_start > len(data):
            raise _bad(f"the record has {len(data)} bytes, but header and table need {rows_start}")
        (checksum,) = _CHECKSUM.unpack_from(data, _PREAMBLE.size)
        if zlib.crc32(memoryview(data)[_START:rows_start], zlib.crc32(data[: _PREAMBLE.size])) != checksum:
            raise _bad("the header is damaged: the checksum differs")
        header = _read_header(data[_START:header_end])
        self.content: dict[str, Any] = header["content"]
        """JSON values stored with the embeddings."""
        self.precision: StoredPrecision = header["precision"]
        """Precision to which the embeddings were rounded."""
        self.dim: int = header["dim"]
        """Embedding dimension of every row."""
        rows: dict[str, int] = header["rows"]
        if sum(rows.values()) != num_rows:
            raise _bad(f"the arrays have {sum(rows.values())} rows, but the table has {num_rows}")
        self.shapes = {name: (count, self.dim) for name, count in rows.items()}
        self._first = dict(zip(rows, accumulate((0, *rows.values())), strict=False))
        self._data, self._table = data, np.frombuffer(data, _TABLE, num_rows, header_end)
        lengths = self._table["length"].astype(np.int64)
        # A Huffman code spends at least one bit per byte, so shorter rows are invalid and would only waste memory.
        least = self.dim // 8 + (self.dim if self.precision == "bfloat16" else _SCALE.size)
        if num_rows and int(lengths.min()) < least:
            raise _bad(f"a row has {lengths.min()} bytes, too few for {self.dim} numbers")
        self._ends = rows_start + np.cumsum(lengths)
        expected = rows_start + int(lengths.sum())
        if len(data) != expected:
            raise _bad(f"the record has {len(data)} bytes, but the table declares {expected}")

    def _row(self, name: str, index: int) -> Embeddings:
        if not 0 <= index < self.shapes[name][0]:
            raise IndexError(f"{name} has {self.shapes[name][0]} rows, so row {index} does not exist")
        place = self._first[name] + index
        length, checksum = self._table[place].tolist()
        end = int(self._ends[place])
        stored = self._data[end - length : end]
        if zlib.crc32(stored) != checksum:
            raise _bad(f"row {index} of {name} is damaged: its checksum differs")
        return _decode_bfloat16(stored, self.dim) if self.precision == "bfloat16" else _decode_int8(stored, self.dim)


def write_record(content: Mapping[str, Any], arrays: Mapping[str, Embeddings], precision: StoredPrecision) -> bytes:
    """Encode a record; equal arguments give equal bytes.

    `bfloat16` rounds to the nearest number, ties to even, like torch. `int8` stores `round(x / s)`. Each row has
    its own scale `s`: the smallest float with 16 significant bits that satisfies `s >= max |x| / 127`. The error is at
    most `s / 2`, or 0.4% of the row's largest value. A decoded record is encoded to the same bytes.

    Args:
        content: JSON values to store with the embeddings.
        arrays: arrays of shape (rows, dim) by name, with equal dim.
        precision: `bfloat16` or `int8`.

    Raises:
        BadSampleError: if a number is NaN, infinite or larger than 3.3e38 in magnitude.
        ValueError: if the arrays differ in dim, or the content or the dim exceeds the maximum of a record.
    """
    dims = {array.shape[1] for array in arrays.values() if array.ndim == 2}
    if len(dims) != 1 or any(array.ndim != 2 for array in arrays.values()) or not 1 <= max(dims) <= MAX_DIM:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"expected arrays of shape (rows, dim) with equal dim from 1 to {MAX_DIM}, found {shapes}")
    counts = {name: len(array) for name, array in arrays.items()}
    header = {"dim": dims.pop(), "precision": precision, "rows": counts, "content": content}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"captions and augmentations have {len(text)} bytes, above the maximum of {MAX_HEADER_BYTES}")
    compressed = zlib.compress(text, 9)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise BadSampleError("not_finite", "the embeddings contain NaN or infinity")
    encode = _encode_bfloat16 if precision == "bfloat16" else _encode_int8
    rows = [encode(row) for array in arrays.values() for row in array]
    table = np.array([(len(row), zlib.crc32(row)) for row in rows], _TABLE).tobytes()
    preamble = _PREAMBLE.pack(MAGIC, VERSION, len(compressed), len(rows))
    checksum = _CHECKSUM.pack(zlib.crc32(preamble + compressed + table))
    return b"".join((preamble, checksum, compressed, table, *rows))


def round_to_bfloat16(values: Embeddings) -> npt.NDArray[np.uint16]:
    """Round finite numbers to bfloat16 (ties to even), and return the bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _bad(detail: str) -> BadSampleError:
    return BadSampleError("bad_record", f"the compact record cannot be read: {detail}")


def _read_header(compressed: bytes) -> dict[str, Any]:
    """Check a header, and return the dim, the precision, the number of rows per array and the content."""
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(compressed, MAX_HEADER_BYTES + 1)
        whole = stream.eof and not stream.unused_data and len(text) <= MAX_HEADER_BYTES
        header = json.loads(text) if whole else None
    except (zlib.error, ValueError, RecursionError) as error:
        raise _bad(f"the header is malformed: {error}") from None
    if not isinstance(header, dict):
        raise _bad("the header is truncated, too large, or not a JSON object")
    dim, rows = header.get("dim"), header.get("rows")
    if type(dim) is not int or not 1 <= dim <= MAX_DIM:
        raise _bad(f"the dim is {dim!r}, expected an integer from 1 to 65,536")
    if header.get("precision") not in ("bfloat16", "int8"):
        raise _bad(f"the precision is {header.get('precision')!r}, expected 'bfloat16' or 'int8'")
    if not isinstance(header.get("content"), dict):
        raise _bad("the content is not a JSON object")
    if not isinstance(rows, dict) or not all(type(count) is int and count >= 0 for count in rows.values()):
        raise _bad("the numbers of rows are malformed")
    return header


def _encode_bfloat16(row: Embeddings) -> bytes:
    bits = round_to_bfloat16(row)
    if ((bits & 0x7F80) == 0x7F80).any():
        raise BadSampleError("not_finite", "an embedding contains a number too large for bfloat16")
    # With the sign last, one byte is the exponent, which has few values; the other byte is practically random.
    planes = ((bits << 1) | (bits >> 15)).astype("<u2").view(np.uint8)
    return planes[0::2].tobytes() + _deflate(planes[1::2].tobytes())


def _decode_bfloat16(stored: bytes, dim: int) -> Embeddings:
    rotated = np.empty(dim, "<u2")
    planes = rotated.view(np.uint8)
    planes[0::2] = np.frombuffer(stored, np.uint8, dim)
    planes[1::2] = np.frombuffer(_inflate(stored[dim:], dim), np.uint8)
    bits = (rotated >> 1) | (rotated << 15)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _encode_int8(row: Embeddings) -> bytes:
    largest = float(np.abs(row).max())
    if largest > _LARGEST * _GREATEST_SCALE:
        raise BadSampleError("not_finite", "an embedding contains a number too large for int8")
    fraction, exponent = math.frexp(largest / _LARGEST)
    scale = max(math.ldexp(math.ceil(fraction * 2**_SCALE_BITS), exponent - _SCALE_BITS), _SMALLEST_SCALE)
    levels = np.rint(row.astype(np.float64) / scale).astype(np.int8)
    return _SCALE.pack(scale) + _deflate(levels.tobytes())


def _decode_int8(stored: bytes, dim: int) -> Embeddings:
    (scale,) = _SCALE.unpack_from(stored)
    if not 0 < scale <= _GREATEST_SCALE:
        raise _bad(f"the scale of a row is {scale}, expected a positive number up to 2**121")
    levels = np.frombuffer(_inflate(stored[_SCALE.size :], dim), np.int8)
    values: Embeddings = levels.astype(np.float32) * np.float32(scale)
    return values


def _deflate(plane: bytes) -> bytes:
    """Return a plane of bytes, Huffman-coded if that is shorter; the reader detects the coding by the length."""
    # Neighbouring numbers are unrelated, so a search for repetitions would only cost time.
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    compressed = stream.compress(plane) + stream.flush()
    return compressed if len(compressed) < len(plane) else plane


def _inflate(stored: bytes, dim: int) -> bytes:
    if len(stored) == dim:
        return stored
    stream = zlib.decompressobj(-15)
    try:
        plane = stream.decompress(stored, dim + 1)
    except zlib.error as error:
        raise _bad(f"a row is malformed: {error}") from None
    if len(plane) != dim or not stream.eof or stream.unused_data:
        raise _bad(f"a row does not have the {dim} numbers that the header declares")
    return plane

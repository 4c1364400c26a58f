"""Image files as nobody should make them: bombs, lies, disguises and damage, by format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from functools import partial

import numpy as np
from PIL import Image

Entry = tuple[int, int, int, bytes]


def noise(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of an image's file."""
    stream = io.BytesIO()
    if kind == "HEIF":
        # Here, since a process that only opens images needs no encoder.
        from pillow_heif import from_pillow

        from_pillow(image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")).save(stream, **options)
    else:
        image.save(stream, kind, **options)
    return stream.getvalue()


def raw(preview: bytes, *, preview_size: tuple[int, int], orientation: int = 1) -> bytes:
    """Return a DNG of 64 x 48 dots with a JPEG as its preview, as cameras write it."""
    sensor = np.arange(64 * 48, dtype="<u2").tobytes()
    preview += bytes(len(preview) % 2)
    words = partial(struct.pack, "<2H")
    below = [
        (254, 4, 1, number(0)), (256, 4, 1, number(64)), (257, 4, 1, number(48)), (258, 3, 1, number(16)),
        (259, 3, 1, number(1)), (262, 3, 1, number(32803)), (273, 4, 1, number(8)), (277, 3, 1, number(1)),
        (278, 4, 1, number(48)), (279, 4, 1, number(len(sensor))), (33421, 3, 2, words(2, 2)),
        (33422, 1, 4, bytes((0, 1, 1, 2))), (50717, 4, 1, number(65535)),
    ]  # fmt: skip
    start = 8 + len(sensor) + len(preview)
    table = directory(below)[8:]
    texts = {271: b"Maker\0", 272: b"Model X\0", 306: b"2024:05:01 12:30:00\0", 50708: b"Model X\0"}
    values = {258: struct.pack("<3H", 8, 8, 8), 50721: struct.pack("<18i", *(1, 1, *(0, 1) * 3) * 2, 1, 1)} | texts
    kinds = {258: (3, 3), 50721: (10, 9)} | {tag: (2, len(text)) for tag, text in texts.items()}
    place = start + len(table)
    top = [
        (254, 4, 1, number(1)), (256, 4, 1, number(preview_size[0])), (257, 4, 1, number(preview_size[1])),
        (259, 3, 1, number(7)), (262, 3, 1, number(6)), (273, 4, 1, number(8 + len(sensor))),
        (274, 3, 1, number(orientation)), (277, 3, 1, number(3)), (278, 4, 1, number(preview_size[1])),
        (279, 4, 1, number(len(preview))), (330, 4, 1, number(start)), (50706, 1, 4, bytes((1, 4, 0, 0))),
        (50778, 3, 1, number(21)),
    ]  # fmt: skip
    stored = b""
    for tag, value in values.items():
        top.append((tag, *kinds[tag], number(place + len(stored))))
        stored += value + bytes(len(value) % 2)
    return (
        directory(top, start=place + len(stored), below=b"")[:8]
        + sensor
        + preview
        + table
        + stored
        + (directory(top)[8:])
    )


# PNG


def chunk(kind: bytes, data: bytes = b"", *, crc: int | None = None) -> bytes:
    """Return a chunk of a PNG, with a checksum that fits unless another is given."""
    return (
        struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(
    width: int = 4,
    height: int = 3,
    *,
    bits: int = 8,
    colour: int = 0,
    before: Iterable[bytes] = (),
    after: Iterable[bytes] = (),
    data: bytes | None = None,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of zeros, of this size and form, with more chunks before and after its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if data is None:
        row = b"\0" * (1 + -(-width * channels * bits // 8))
        compressor = zlib.compressobj(1)
        data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    pieces = (chunk(b"IHDR", header), *before, chunk(b"IDAT", data), *after, chunk(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


# TIFF, and the notes of cameras


def directory(entries: Iterable[Entry], *, order: str = "<", start: int = 8, below: bytes = b"") -> bytes:
    """Return a TIFF header and one directory; entries are number, type, count and value or offset."""
    rows = sorted(entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    table = struct.pack(f"{order}H", len(rows))
    table += b"".join(struct.pack(f"{order}HHI", *row[:3]) + row[3].ljust(4, b"\0")[:4] for row in rows)
    return head.ljust(start, b"\0") + table + bytes(4) + below


def number(value: int, *, order: str = "<") -> bytes:
    """Return the value of an entry."""
    return struct.pack(f"{order}I", value)


def tiff(width: int = 4, height: int = 3, *, more: Iterable[Entry] = (), pixels: bytes | None = None) -> bytes:
    """Return a grey TIFF; more entries replace those of the same number."""
    body = bytes(width * height) if pixels is None else pixels
    entries: dict[int, Entry] = {
        256: (256, 4, 1, number(width)),
        257: (257, 4, 1, number(height)),
        258: (258, 3, 1, number(8)),
        259: (259, 3, 1, number(1)),
        262: (262, 3, 1, number(1)),
        273: (273, 4, 1, number(0)),
        277: (277, 3, 1, number(1)),
        278: (278, 4, 1, number(height)),
        279: (279, 4, 1, number(len(body))),
    }
    entries |= {entry[0]: entry for entry in more}
    begin = 8 + 2 + 12 * len(entries) + 4
    if entries[273][3] == number(0):
        entries[273] = (273, 4, 1, number(begin))
    return directory(entries.values(), below=body)


def overlapping(num_tags: int, num_bytes: int) -> bytes:
    """Return notes whose tags all hold the same bytes: as many times as there are tags when they are read."""
    start = 8 + 2 + 12 * num_tags + 4
    return directory(
        ((40_000 + tag % 25_000, 7, num_bytes, number(start)) for tag in range(num_tags)), below=bytes(num_bytes)
    )


def turned_notes(orientation: int, *, order: str = "<") -> bytes:
    """Return notes that say how a picture is turned."""
    value = struct.pack(f"{order}HH", orientation, 0)
    return directory([(0x0112, 3, 1, value)], order=order)


# JPEG


def segment(kind: int, data: bytes, *, length: int | None = None) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2 if length is None else length) + data


def exif_segment(notes: bytes) -> bytes:
    """Return the segment with a camera's notes."""
    return segment(0xE1, b"Exif\0\0" + notes)


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with more segments in front."""
    return b"".join((data[:2], *segments, data[2:]))


def many_scans(width: int, height: int, num_scans: int, *, between: bytes = b"") -> bytes:
    """Return a grey progressive JPEG whose last scan comes so many times more."""
    data = encoded(Image.new("L", (width, height), 128), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    last = data[data.rindex(b"\xff\xda") : end]
    return data[:end] + (between + last) * num_scans + b"\xff\xd9"


def resized_frame(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG that claims another size."""
    start = next(place for mark in (b"\xff\xc0", b"\xff\xc2") if (place := data.find(mark)) >= 0)
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


# GIF, BMP, WebP


def gif(width: int = 4, height: int = 3, *, screen: tuple[int, int] | None = None, before: bytes = b"") -> bytes:
    """Return a GIF with one image of zeros, with more blocks in front of it."""
    whole = encoded(Image.new("P", (width, height)), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1)
    head = whole[:6] + struct.pack("<HH", *(screen or (width, height))) + whole[10:start]
    return head + before + whole[start:]


def bmp(
    *, compression: int = 0, width: int = 4, height: int = 3, bits: int = 8, colours: int = 0, data: bytes = b""
) -> bytes:
    """Return a BMP with this header, a grey palette and this data."""
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, colours, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP made of these chunks."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_chunk(image: Image.Image, **options: object) -> tuple[bytes, bytes]:
    """Return the one chunk that holds an image's pixels."""
    data = encoded(image, "WEBP", **options)
    kind = data[12:16]
    assert kind in (b"VP8 ", b"VP8L"), kind
    return kind, data[20 : 20 + struct.unpack("<I", data[16:20])[0]]


def extended(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """Return the chunk that says the size of a WebP's canvas."""
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")

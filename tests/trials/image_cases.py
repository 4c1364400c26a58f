"""Tables of images from strangers, by name: what is none, what costs too much, what is broken, and what is only odd."""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image

from tests.trials.harness import CANARY, PickledCanary
from tests.trials.image_files import (
    bmp,
    chunk,
    directory,
    encoded,
    exif_segment,
    extended,
    gif,
    many_scans,
    noise,
    number,
    overlapping,
    png,
    raw,
    resized_frame,
    riff,
    segment,
    tiff,
    turned_notes,
    webp_chunk,
    with_segments,
)

Make = Callable[[], bytes]

_POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch owned) (w) file\nshowpage\n"
)


def _constant(data: bytes) -> Make:
    return lambda: data


def _other(kind: str, mode: str = "RGB") -> Make:
    return lambda: encoded(noise(40, 30, mode), kind)


def disguises() -> Mapping[str, Make]:
    """Return what is no image, or one in a format that is not read, called photo.jpg."""
    known = {kind: _other(kind) for kind in ("EPS", "PDF", "ICO", "ICNS", "TGA", "PCX", "PPM", "SGI", "DDS", "QOI")}
    known |= {"IM": _other("IM"), "JPEG 2000": _other("JPEG2000"), "XBM": _other("XBM", "1"), "MSP": _other("MSP", "1")}
    known |= {
        "BLP": _other("BLP", "P"),
        "SPIDER": _other("SPIDER", "F"),
        "DIB": _other("DIB"),
        "PALM": _other("PALM", "P"),
    }
    texts = {
        "PostScript": _POSTSCRIPT,
        "PostScript with a preview": struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(_POSTSCRIPT), 0, 0, 0, 0, 0)
        + _POSTSCRIPT,
        "PostScript behind a line break": b"\r\n" + _POSTSCRIPT,
        "PostScript for a printer": b"\x1b%-12345X@PJL ENTER LANGUAGE=POSTSCRIPT\n" + _POSTSCRIPT,
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "SVG with entities without end": b"<!DOCTYPE s [<!ENTITY a '&a;&a;'>]><svg>&a;</svg>",
        "SVG, compressed": gzip.compress(b"<svg/>"),
        "WMF": struct.pack("<IHhhhhHIH", 0x9AC6CDD7, 0, 0, 0, 99, 99, 96, 0, 0) + b"\x01\0\x09\0\0\x03" + bytes(60),
        "EMF": struct.pack("<II16x16xI", 1, 88, 0x464D4520) + bytes(60),
        "FLI": struct.pack("<IHHHHHHI", 200, 0xAF11, 9, 40, 30, 8, 3, 5) + bytes(200),
        "FLC": struct.pack("<IHHHHHHI", 200, 0xAF12, 9, 40, 30, 8, 3, 5) + bytes(200),
        "PSD": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 30, 40, 8, 3) + bytes(4000),
        "XPM": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};\n',
        "FITS": b"SIMPLE  =                    T".ljust(2880),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "GRIB": b"GRIB\0\0\0\x01" + bytes(200),
        "BUFR": b"BUFR\0\0\0\x04" + bytes(200),
        "MPEG": b"\0\0\x01\xb3" + bytes(200),
        "Photo CD": bytes(2048) + b"PCD_" + bytes(2000),
        "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200),
        "a page": b"<html><img src='photo.jpg'></html>",
        "an archive": b"PK\x03\x04" + bytes(200),
        "a pickle": pickle.dumps(PickledCanary()),
        "Python": CANARY.encode(),
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": bytes(100_000),
    }
    return known | {name: _constant(data) for name, data in texts.items()}


def _jpeg(**options: object) -> bytes:
    return encoded(noise(), "JPEG", **options)


def beyond_limits() -> Mapping[str, tuple[str, Make]]:
    """Return files that would cost too much, with the reason why they are refused: no decoder may have seen them."""
    made: dict[str, dict[str, Make]] = {
        "too_many_scans": {
            "JPEG of few scans of very many pixels": lambda: resized_frame(many_scans(400, 300, 14), 9000, 9000),
            "JPEG of scans behind a mark that means nothing": partial(many_scans, 400, 300, 2000, between=b"\xff\x01"),
            "JPEG of scans behind restarts": partial(many_scans, 400, 300, 2000, between=b"\xff\xd0\xff\x02"),
            "JPEG of scans behind fill bytes": partial(many_scans, 400, 300, 2000, between=b"\xff" * 9),
            "JPEG of scans behind comments without a length": partial(
                many_scans, 400, 300, 2000, between=b"\xff\xfe\0\0"
            ),
            "JPEG of scans behind notes": lambda: with_segments(
                many_scans(400, 300, 2000), exif_segment(turned_notes(6))
            ),
        },
        "too_large": {
            "JPEG of very many pixels": lambda: resized_frame(_jpeg(), 65_500, 65_500),
            "PNG of very many pixels": lambda: png(50_000, 50_000, bits=1, data=b""),
            "PNG of 16 bits of very many pixels": lambda: png(14_000, 14_000, bits=16, data=b""),
            "GIF with a canvas of very many pixels": lambda: gif(screen=(65_535, 65_535)),
            "BMP of very many pixels": lambda: bmp(width=65_000, height=65_000),
            "TIFF of very many pixels": lambda: tiff(more=[(256, 4, 1, number(70_000)), (257, 4, 1, number(70_000))]),
            "WebP of very many pixels": lambda: riff(extended(2**24, 2**24), webp_chunk(noise())),
        },
        "corrupt": {
            "TIFF whose tags overlap": lambda: tiff(more=_overlapping_tags(3000)),
        },
    }
    for count in (100, 1000, 40_000):
        made["too_many_scans"][f"JPEG of {count} scans"] = partial(many_scans, 400, 300, count)
    return {name: (reason, make) for reason, cases in made.items() for name, make in cases.items()}


def broken() -> Mapping[str, Make]:
    """Return files that begin like an image and cannot be decoded."""
    made: dict[str, Make] = {
        "JPEG without height": lambda: resized_frame(_jpeg(), 40, 0),
        "JPEG of 12 bits": lambda: _jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "JPEG, lossless by its mark": lambda: _jpeg().replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"),
        "JPEG with two frames": lambda: _jpeg().replace(b"\xff\xda", segment(0xC0, _frame_of(_jpeg())) + b"\xff\xda"),
        "JPEG that begins twice": lambda: b"\xff\xd8" + _jpeg(),
        "JPEG of segments alone": lambda: b"\xff\xd8" + segment(0xFE, b"x" * 60_000) * 100,
        "JPEG of 200 colours": lambda: _jpeg().replace(b"\x03\x01\x22", b"\xc8\x01\x22", 1),
        "PNG of negative size": lambda: png(2**31 + 5, 3, data=b""),
        "PNG with a wrong checksum in its header": lambda: png().replace(png()[29:33], b"abcd", 1),
        "PNG without pixels": lambda: png()[:33] + chunk(b"IEND"),
        "PNG of a palette without one": lambda: png(bits=8, colour=3, data=b"no stream"),
        "PNG with a chunk as long as the world": lambda: png(before=[struct.pack(">I4s", 2**31 - 1, b"tEXt")]),
        "PNG of three bits": lambda: png(bits=3, data=b""),
        "AVIF that claims more pixels": partial(_more_pixels, "AVIF"),
        "HEIC that claims more pixels": partial(_more_pixels, "HEIF"),
        "GIF without an image": lambda: gif()[: gif().rindex(b",")] + b";",
        "GIF that ends within a comment": lambda: gif(before=b"!\xfe\xffx")[:-60],
        "BMP around a JPEG": lambda: bmp(compression=4, data=_jpeg()),
        "BMP of negative width": lambda: bmp(width=-5),
        "BMP with a palette of millions": lambda: bmp(colours=2**31 - 1, data=bytes(12)),
        "BMP of three bits": lambda: bmp(bits=3, data=bytes(12)),
        "TIFF with 60,000 samples a pixel": lambda: tiff(more=[(277, 3, 1, number(60_000))]),
        "TIFF with its width twice": lambda: directory([(256, 4, 1, number(3)), (256, 4, 1, number(70_000))]),
        "TIFF that is its own directory": lambda: directory([(330, 4, 1, number(8)), (34665, 4, 1, number(8))]),
        "TIFF whose directory is far behind": lambda: b"II*\0" + number(2**32 - 1) + bytes(100),
        "TIFF, big, whose directory is far behind": lambda: (
            b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1) + bytes(99)
        ),
        "TIFF of floats": lambda: encoded(Image.new("F", (4, 3), 0.5), "TIFF"),
        "TIFF of strips that break off": lambda: encoded(noise(200, 200), "TIFF", compression="tiff_lzw")[:30_000],
        "WebP whose canvas is not its picture's": lambda: riff(extended(41, 30), webp_chunk(noise())),
        "WebP with a chunk as long as the world": lambda: riff((b"VP8 ", b"x" * 9))[:16] + b"\xff" * 12,
        "WebP of no chunk": lambda: riff((b"VP8X", b"")),
        "AVIF of nothing but a name": _constant(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
        "HEIC of nothing but a name": _constant(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "DNG whose picture is elsewhere": lambda: raw(b"no picture" * 200, preview_size=(160, 120)),
        "CR2 of zeros": _constant(b"II*\0\x10\0\0\0CR\2\0" + bytes(9999)),
        "HEIC of zeros": _constant(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(9999)),
        "AVIF of zeros": _constant(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(9999)),
    }
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"):
        for part in (0.2, 0.6, 0.9):
            made[f"{kind}, {part:.0%} of it"] = partial(_cut, kind, part)
    return made


def _cut(kind: str, part: float) -> bytes:
    data = encoded(noise(160, 120), kind)
    return data[: int(part * len(data))]


def _frame_of(data: bytes) -> bytes:
    start = data.index(b"\xff\xc0")
    return data[start + 4 : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]


def _without(data: bytes, kind: int) -> bytes:
    while (start := data.find(bytes((0xFF, kind)))) >= 0:
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    return data


def _overlapping_tags(count: int) -> list[tuple[int, int, int, bytes]]:
    return [(40_000 + tag, 7, 36_000, number(8)) for tag in range(count)]


def _more_pixels(kind: str) -> bytes:
    data = encoded(noise(), kind)
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">II", 30_000, 30_000) + data[start + 8 :]


def _animated(kind: str, count: int = 30) -> bytes:
    frames = [noise(seed=seed) for seed in range(count)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _several(kind: str) -> bytes:
    return encoded(noise(), kind, save_all=True, append_images=[noise(seed=1)])


def sound() -> Mapping[str, Make]:
    """Return files that are strange, and pictures all the same: what is wrong with them is not among the pixels."""
    made: dict[str, Make] = {
        "JPEG of CMYK": lambda: encoded(noise(mode="CMYK"), "JPEG"),
        "JPEG of YCCK": lambda: _with_adobe(encoded(noise(mode="CMYK"), "JPEG"), 2),
        "JPEG, grey": lambda: encoded(noise(mode="L"), "JPEG"),
        "JPEG, progressive": lambda: _jpeg(progressive=True),
        "JPEG of 90 scans": partial(many_scans, 400, 300, 84),
        "JPEG of one pixel": lambda: encoded(noise(1, 1), "JPEG"),
        "JPEG of 65,500 pixels in a row": lambda: encoded(noise(65_500, 1), "JPEG"),
        "JPEG of 65,500 rows": lambda: encoded(noise(1, 65_500), "JPEG"),
        "JPEG with notes that overlap": lambda: with_segments(_jpeg(), exif_segment(overlapping(3000, 29_000))),
        "JPEG with a thousand notes": lambda: with_segments(_jpeg(), exif_segment(bytes(60_000)) * 1000),
        "JPEG with notes of nothing": lambda: with_segments(_jpeg(), exif_segment(b"")),
        "JPEG with notes that run in circles": lambda: with_segments(
            _jpeg(), exif_segment(directory([(0x8769, 4, 1, number(8)), (0x8825, 4, 1, number(8))]))
        ),
        "JPEG turned by 9": lambda: with_segments(_jpeg(), exif_segment(turned_notes(9))),
        "JPEG with a list of pictures that overlaps": lambda: with_segments(
            _jpeg(), segment(0xE2, b"MPF\0" + overlapping(3000, 29_000))
        ),
        "JPEG with a profile in 255 parts": lambda: with_segments(
            _jpeg(), *(segment(0xE2, b"ICC_PROFILE\0" + bytes((part, 255)) + bytes(65_000)) for part in range(1, 256))
        ),
        "JPEG with a profile that never ends": lambda: _jpeg(icc_profile=b"x" * 5_000_000),
        "JPEG with a program in a comment": lambda: _jpeg(comment=b"<?php system($_GET['x']); ?>" + _POSTSCRIPT),
        "JPEG with fill bytes": lambda: _jpeg().replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),
        "JPEG with an archive behind it": lambda: _jpeg() + b"PK\x03\x04" + bytes(100_000),
        "JPEG with scans behind its end": lambda: _jpeg(progressive=True) + b"\xff\xda\0\x08" * 5000,
        "JPEG without tables of codes": lambda: _without(_jpeg(), 0xC4),
        "MPO of two pictures": lambda: _several("MPO"),
        "PNG, interlaced": lambda: png(40, 30, data=zlib.compress(bytes(4000)), interlaced=True),
        "PNG of 16 bits, grey": lambda: png(40, 30, bits=16),
        "PNG of 16 bits, in colours": lambda: png(40, 30, bits=16, colour=2),
        "PNG of 16 bits, with transparency": lambda: png(40, 30, bits=16, colour=6),
        "PNG of a palette with transparency": lambda: encoded(noise(mode="P"), "PNG", transparency=bytes(range(200))),
        "PNG of one pixel": lambda: png(1, 1, bits=1),
        "PNG of a million pixels in a row": lambda: png(1_000_000, 1),
        "PNG with texts that inflate to 400 MB": lambda: png(before=_text_bombs()),
        "PNG with 5,000 profiles": lambda: png(before=[chunk(b"iCCP", b"a\0\0" + _zeros(2**20 - 1))] * 5000),
        "PNG with texts of 100 MB": lambda: png(before=[chunk(b"tEXt", b"a\0" + bytes(10**7))] * 10),
        "PNG with a text that has a wrong checksum": lambda: png(before=[chunk(b"tEXt", b"a\0b", crc=1)]),
        "PNG with notes that overlap": lambda: png(before=[chunk(b"eXIf", overlapping(20_000, 60_000))]),
        "PNG with notes in a text": lambda: png(before=[chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\nnot hex")]),
        "PNG whose last rows are not there": lambda: png(40, 30, data=zlib.compress(bytes(41 * 7))),
        "PNG with a profile that inflates to 128 MB": lambda: png(before=[chunk(b"iCCP", b"a\0\0" + _zeros(2**27))]),
        "PNG with pixels in single bytes": _png_in_bytes,
        "PNG, animated": lambda: _animated("PNG", 20),
        "GIF, animated": lambda: _animated("GIF"),
        "GIF with a program for a comment": lambda: gif(before=b"!\xfe\x20" + _POSTSCRIPT[:32] + b"\0"),
        "BMP": lambda: encoded(noise(), "BMP"),
        "BMP from top to bottom": lambda: bmp(height=-3, data=bytes(12)),
        "TIFF of many pages": lambda: _animated("TIFF", 100),
        "TIFF of 16 bits": lambda: encoded(Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)), "TIFF"),
        "TIFF of JPEG": lambda: encoded(noise(), "TIFF", compression="jpeg"),
        "TIFF with texts without an end": lambda: tiff(more=[(270, 2, 12, number(8))]),
        "WebP, animated": lambda: _animated("WEBP", 50),
        "WebP with transparency": lambda: encoded(noise(mode="RGBA"), "WEBP"),
        "WebP without loss": lambda: encoded(noise(), "WEBP", lossless=True),
        "WebP with notes that overlap": lambda: riff(
            extended(40, 30, 8), webp_chunk(noise()), (b"EXIF", overlapping(20_000, 60_000))
        ),
        "AVIF": lambda: encoded(noise(), "AVIF"),
        "HEIC": lambda: encoded(noise(64, 64), "HEIF"),
        "DNG of a camera": lambda: raw(encoded(noise(160, 120), "JPEG"), preview_size=(160, 120)),
        "AVIF, animated": lambda: _animated("AVIF", 10),
    }
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        for turn in (2, 6):
            made[f"{kind} turned by {turn}"] = lambda kind=kind, turn=turn: encoded(
                noise(), kind, exif=b"Exif\0\0" + turned_notes(turn, order=">" if turn == 2 else "<")
            )
    return made


def _with_adobe(data: bytes, transform: int) -> bytes:
    start = data.index(b"Adobe")
    return data[: start + 11] + bytes((transform,)) + data[start + 12 :]


def _zeros(count: int) -> bytes:
    compressor = zlib.compressobj(9)
    block = bytes(2**20)
    pieces = [compressor.compress(block[: min(2**20, count - start)]) for start in range(0, count, 2**20)]
    return b"".join(pieces) + compressor.flush()


def _text_bombs() -> list[bytes]:
    inflated = _zeros(2**27)
    return [
        chunk(b"zTXt", b"a\0\0" + inflated),
        chunk(b"zTXt", b"\0\0" + inflated),
        chunk(b"iTXt", b"a\0\x01\0\0\0" + inflated),
    ]


def _png_in_bytes() -> bytes:
    data = encoded(noise(60, 60), "PNG")
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    pieces = b"".join(chunk(b"IDAT", bytes((value,))) for value in data[start + 4 : start + 4 + length])
    return data[: start - 4] + pieces + chunk(b"IEND")

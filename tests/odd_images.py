"""Pictures as people have them: turned, transparent, of other modes and formats, broken."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

ORIENTATION = 0x0112


def drawing(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture that no turn and no mirror leaves as it is: a red bar at the left, a blue disc at the lower right."""
    picture = Image.new("RGB", size, (240, 230, 190))
    pen = ImageDraw.Draw(picture)
    width, height = size
    pen.rectangle((0, 0, width // 5, height), fill=(200, 30, 30))
    pen.ellipse((width // 2, height // 2, width - 2, height - 2), fill=(30, 60, 200))
    return picture.convert(mode)


def stamp() -> Image.Image:
    """A black disc on nothing, below which lies black: what a drawing program writes."""
    picture = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill=(0, 0, 0, 255))
    return picture


def glass() -> Image.Image:
    """Every alpha, over colours that differ from what lies below."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    return Image.fromarray(pixels)


def turned(kind: str, orientation: int) -> bytes:
    """The drawing in a file that says how it is turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(drawing(), kind, exif=exif)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file holds it."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def readable() -> dict[str, bytes]:
    """Files of pictures that can be read, by name."""
    palette = stamp().quantize(8)
    sixteen = np.asarray(drawing("L")).astype(np.uint16) * 257
    return {
        **{f"exif_{number}.jpg": turned("JPEG", number) for number in range(1, 9)},
        "png_exif_6.png": turned("PNG", 6),
        "webp_exif_8.webp": turned("WEBP", 8),
        "tiff_exif_6.tiff": turned("TIFF", 6),
        "cmyk.jpg": encoded(drawing("CMYK"), "JPEG"),
        "gray.jpg": encoded(drawing("L"), "JPEG"),
        "stamp.png": encoded(stamp(), "PNG"),
        "stamp_webp.webp": encoded(stamp(), "WEBP", lossless=True),
        "stamp_gif.gif": encoded(stamp(), "GIF"),
        "stamp_avif.avif": encoded(stamp(), "AVIF", quality=100),
        "stamp_palette.png": encoded(palette, "PNG"),
        "glass.png": encoded(glass(), "PNG"),
        "gray_alpha.png": encoded(stamp().convert("LA"), "PNG"),
        "16bit.png": encoded(Image.fromarray(sixteen), "PNG"),
        "16bit_tiff.tiff": encoded(Image.fromarray(sixteen), "TIFF"),
        "one.png": encoded(Image.new("RGBA", (1, 1), (10, 200, 30, 0)), "PNG"),
        "lines.bmp": encoded(drawing(), "BMP"),
    }


def broken() -> dict[str, bytes]:
    """Files that are called like pictures and cannot be read, by name."""
    whole = encoded(drawing(), "JPEG")
    return {
        "cut.jpg": whole[: len(whole) // 2],
        "cut_png.png": encoded(glass(), "PNG")[:-400],
        "empty.jpg": b"",
        "letter.jpg": b"Dear all, the pictures are in the other folder.",
    }

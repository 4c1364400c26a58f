"""Pictures as people have them: turned, transparent, of other modes and formats, broken."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tests.build.image_files import encoded, turned_notes


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
    return encoded(drawing(), kind, exif=b"Exif\0\0" + turned_notes(orientation))


def readable() -> dict[str, bytes]:
    """Files of pictures that can be read, by name."""
    sixteen = Image.fromarray(np.asarray(drawing("L")).astype(np.uint16) * 257)
    return {
        **{f"exif_{number}.jpg": turned("JPEG", number) for number in range(1, 9)},
        **{f"turned_{kind}.{kind}": turned(kind.upper(), 6) for kind in ("png", "tiff")},
        "turned_webp.webp": turned("WEBP", 8),
        **{f"{mode}.jpg": encoded(drawing(mode), "JPEG") for mode in ("CMYK", "L")},
        **{f"stamp_{kind}.{kind}": encoded(stamp(), kind.upper()) for kind in ("png", "gif")},
        "stamp_webp.webp": encoded(stamp(), "WEBP", lossless=True),
        "stamp_avif.avif": encoded(stamp(), "AVIF", quality=100),
        "stamp_palette.png": encoded(stamp().quantize(8), "PNG"),
        "glass.png": encoded(glass(), "PNG"),
        "gray_alpha.png": encoded(stamp().convert("LA"), "PNG"),
        **{f"16bit_{kind}.{kind}": encoded(sixteen, kind.upper()) for kind in ("png", "tiff")},
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

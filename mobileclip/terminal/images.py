"""Prints images on a terminal, with two pixels per character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mobileclip.terminal.printing import output_console

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

# A half block: the foreground colour is the upper pixel, and the background colour the lower pixel.
_UPPER_HALF = "▀"


def can_show_images() -> bool:
    """Return whether standard output is a terminal with colours and a Unicode encoding."""
    console = output_console()
    return console.color_system is not None and console.encoding.startswith("utf")


def show_images(rows: Iterable[tuple[Image.Image | None, str]]) -> None:
    """Print images on standard output, each with a text to its right.

    Args:
        rows: pairs of an RGB image, or None for a missing image, and a text. An image takes one terminal column per
            pixel column, and one line per two pixel rows.
    """
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 1, 0), collapse_padding=False)
    table.add_column()
    table.add_column(overflow="fold")
    for image, text in rows:
        table.add_row("" if image is None else _half_blocks(image), text)
    output_console().print(table)


def _half_blocks(image: Image.Image) -> Text:
    from rich.style import Style
    from rich.text import Text

    text = Text(no_wrap=True)
    for y in range(0, image.height, 2):
        if y:
            text.append("\n")
        for x in range(image.width):
            upper = _colour(image, x, y)
            lower = _colour(image, x, y + 1) if y + 1 < image.height else None
            text.append(_UPPER_HALF, Style(color=upper, bgcolor=lower))
    return text


def _colour(image: Image.Image, x: int, y: int) -> str:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple), "the image has three channels"
    return "#{:02x}{:02x}{:02x}".format(*pixel)

"""A canvas for contact sheets: wrapped text, fonts, colours."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import attrs
from PIL import Image, ImageDraw, ImageFont

from mobileclip.data.images.transform import ImageSource, load_image
from mobileclip.inputs import Color

TILE = 224
COLUMNS = 5
GAP = 16
MARGIN = 40
INNER = COLUMNS * TILE + (COLUMNS - 1) * GAP
WIDTH = INNER + 2 * MARGIN

PAPER = (252, 251, 248)
"""The colour of everything that people look at, below transparent pictures too."""
INK = (28, 30, 34)
FAINT = (112, 116, 124)
RULE = (222, 220, 214)
EMPTY = (238, 236, 230)
ALARM = (176, 42, 32)
BAR = (58, 110, 165)

_LINE = 1.35
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "arial.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def load_shown(source: ImageSource, *, orient: bool = True, reduce: int = 1) -> Image.Image:
    """Return a picture as a person looks at it: on paper where it is transparent.

    Args:
        source: see `load_image`.
        orient: see `load_image`; not where stored crops are drawn on it.
        reduce: see `load_image`.

    Raises:
        ImageError: if it cannot be read.
    """
    return load_image(source, orient=orient, background=PAPER, reduce=reduce)


@attrs.frozen(kw_only=True, eq=False)
class Tile:
    """A picture on a sheet, with lines below it.

    Args:
        picture: no larger than `TILE`; None where there is none.
        lines: texts, each with its size in pixels and its colour.
    """

    picture: Image.Image | None
    lines: tuple[tuple[str, int, Color], ...]


@attrs.define
class Sheet:
    """Paper that grows downwards.

    Args:
        y: where the next thing goes, in pixels from the top.
    """

    y: int = MARGIN
    _paper: Image.Image = attrs.field(factory=lambda: Image.new("RGB", (WIDTH, 1200), PAPER))

    def room(self, height: int) -> ImageDraw.ImageDraw:
        """Return a drawing context, with space for `height` more pixels below what is drawn."""
        if self.y + height + MARGIN > self._paper.height:
            larger = Image.new("RGB", (WIDTH, 2 * self._paper.height + height), PAPER)
            larger.paste(self._paper)
            self._paper = larger
        return ImageDraw.Draw(self._paper)

    def paste(self, image: Image.Image, place: tuple[int, int]) -> None:
        """Put an image where there is room."""
        self._paper.paste(image, place)

    def space(self, height: int) -> None:
        """Leave some paper free."""
        self.y += height

    def text(
        self,
        text: str,
        size: int,
        color: Color = INK,
        *,
        left: int = MARGIN,
        width: int = INNER,
        y: int | None = None,
    ) -> int:
        """Write wrapped text, at the end of the sheet unless a place is given, and return where it ends."""
        text, font = legible(text)
        lines = wrap(text, font_of(size, font), width)
        step = round(size * _LINE)
        start = self.y if y is None else y
        draw = self.room(start - self.y + step * len(lines))
        for index, line in enumerate(lines):
            draw.text((left, start + index * step), line, color, font_of(size, font))
        end = start + step * len(lines)
        if y is None:
            self.y = end
        return end

    def tiles(self, tiles: Sequence[Tile]) -> None:
        """Draw pictures side by side, with their lines, in as many rows as they need."""
        for start in range(0, len(tiles), COLUMNS):
            top, end = self.y, self.y
            for column, tile in enumerate(tiles[start : start + COLUMNS]):
                left, bottom = MARGIN + column * (TILE + GAP), top
                if tile.picture is not None:
                    self.room(TILE)
                    self.paste(tile.picture, (left, top))
                    bottom += tile.picture.height + 6
                for text, size, color in tile.lines:
                    bottom = self.text(text, size, color, left=left, width=TILE, y=bottom)
                end = max(end, bottom)
            self.y = end + GAP

    def heading(self, text: str) -> None:
        """Write a section's title below a rule."""
        self.space(26)
        self.room(60).line((MARGIN, self.y, WIDTH - MARGIN, self.y), RULE, 1)
        self.space(14)
        self.text(text, 18)
        self.space(8)

    def image(self) -> Image.Image:
        """Return the sheet, cut where it ends."""
        return self._paper.crop((0, 0, WIDTH, self.y + MARGIN))


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Return text in lines that are no wider than `width`, in pixels; words too long are broken."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        rest = word
        joined = f"{line} {rest}" if line else rest
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(rest) > width and len(rest) > 1:
            kept = next(
                count for count in range(len(rest) - 1, 0, -1) if count == 1 or font.getlength(rest[:count]) <= width
            )
            lines.append(rest[:kept])
            rest = rest[kept:]
        line = rest
    return [*lines, line] if line or not lines else lines


def legible(text: str) -> tuple[str, str]:
    """Return text with the name of a font that can show it, the built-in one's being empty.

    Pillow's own font knows little more than ASCII. Other characters take one of the machine's fonts; where there is
    none, accents are dropped, and what is then left becomes a question mark.
    """
    if text.replace("°", "").isascii():
        return text, ""
    name = _system_font()
    if name:
        return text, name
    plain = unicodedata.normalize("NFKD", text)
    return "".join(one for one in plain if not unicodedata.combining(one)).encode("ascii", "replace").decode(), ""


@cache
def _system_font() -> str:
    for name in _SYSTEM_FONTS:
        try:
            ImageFont.truetype(name, 16)
        except OSError:
            continue
        return name
    return ""


@cache
def font_of(size: int, name: str = "") -> Font:
    """Return a font of a size in pixels: one of the machine's by its file's name, else Pillow's own."""
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)

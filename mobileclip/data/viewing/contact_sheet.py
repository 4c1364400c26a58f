"""A contact sheet of one sample: the image with its crops, every augmentation replayed, and the captions."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import attrs
from PIL import Image, ImageDraw, ImageFont

from mobileclip.data.augmentation.replay import AugmentationParams, datacompdr_augmentation
from mobileclip.data.viewing.inspection import Caption, Inspection, describe_crop, describe_operations

TILE = 224

_COLUMNS = 5
_GAP = 16
_MARGIN = 40
_INNER = _COLUMNS * TILE + (_COLUMNS - 1) * _GAP
_WIDTH = _INNER + 2 * _MARGIN
_IMAGE_BOX = (3 * TILE + 2 * _GAP, 460)
_LINE = 1.35
_MAX_OUTLINED = 12

_PAPER = (252, 251, 248)
_INK = (28, 30, 34)
_FAINT = (112, 116, 124)
_RULE = (222, 220, 214)
_EMPTY = (238, 236, 230)
_ALARM = (176, 42, 32)
_BAR = (58, 110, 165)

_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "arial.ttf")

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_sheet(inspection: Inspection) -> Image.Image:
    """Return a contact sheet, as high as it needs to be.

    Args:
        inspection: of a sample with an image or without, reinforced or plain.
    """
    sheet = _Sheet()
    sheet.text(inspection.sample.key, 26)
    sheet.text(inspection.shard, 14, _FAINT)
    sheet.space(14)
    _draw_source(sheet, inspection)
    if inspection.augmentations:
        _draw_augmentations(sheet, inspection)
    _draw_captions(sheet, inspection)
    return sheet.image()


@attrs.define
class _Sheet:
    """Paper that grows downwards."""

    y: int = _MARGIN
    _paper: Image.Image = attrs.field(factory=lambda: Image.new("RGB", (_WIDTH, 1200), _PAPER))

    def room(self, height: int) -> ImageDraw.ImageDraw:
        """Return something to draw with on paper that has room for `height` more pixels."""
        if self.y + height + _MARGIN > self._paper.height:
            larger = Image.new("RGB", (_WIDTH, 2 * self._paper.height + height), _PAPER)
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
        color: Color = _INK,
        *,
        left: int = _MARGIN,
        width: int = _INNER,
        y: int | None = None,
    ) -> int:
        """Write wrapped text, at the end of the sheet unless a place is given, and return where it ends."""
        text, font = legible(text)
        lines = wrap(text, _font(size, font), width)
        step = round(size * _LINE)
        start = self.y if y is None else y
        draw = self.room(start - self.y + step * len(lines))
        for index, line in enumerate(lines):
            draw.text((left, start + index * step), line, color, _font(size, font))
        end = start + step * len(lines)
        if y is None:
            self.y = end
        return end

    def heading(self, text: str) -> None:
        """Write a section's title below a rule."""
        self.space(26)
        self.room(60).line((_MARGIN, self.y, _WIDTH - _MARGIN, self.y), _RULE, 1)
        self.space(14)
        self.text(text, 18)
        self.space(8)

    def image(self) -> Image.Image:
        """Return the sheet, cut where it ends."""
        return self._paper.crop((0, 0, _WIDTH, self.y + _MARGIN))


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
def _font(size: int, name: str = "") -> Font:
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)


def _draw_source(sheet: _Sheet, inspection: Inspection) -> None:
    """Draw the image with its crops, and what is known about it at its side."""
    image, size = _source(inspection)
    scale = min(_IMAGE_BOX[0] / size[0], _IMAGE_BOX[1] / size[1])
    shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    left, top = _MARGIN, sheet.y
    sheet.room(shown[1])
    if image is not None:
        sheet.paste(image.resize(shown, Image.Resampling.LANCZOS), (left, top))
    draw = sheet.room(shown[1])
    if image is None:
        draw.rectangle((left, top, left + shown[0] - 1, top + shown[1] - 1), _EMPTY, _RULE)
    count = len(inspection.augmentations)
    boxes = [_box(params, (left, top), scale) for params in inspection.augmentations]
    for number, box in enumerate(boxes):
        _draw_crop(draw, box, _color(number), outlined=count <= _MAX_OUTLINED)
    for number, box in enumerate(boxes):
        _draw_badge(draw, number, box, 12)
    side = left + shown[0] + 2 * _GAP
    end = top
    for title, text, color in _facts(inspection):
        end = sheet.text(title, 13, _FAINT, left=side, width=_WIDTH - _MARGIN - side, y=end)
        end = sheet.text(text, 16, color, left=side, width=_WIDTH - _MARGIN - side, y=end) + 10
    sheet.y = max(top + shown[1], end)


def _source(inspection: Inspection) -> tuple[Image.Image | None, tuple[int, int]]:
    """Return the image, if there is one, and the size in which crops are counted."""
    if inspection.image is not None:
        return inspection.image, inspection.image.size
    params = inspection.augmentations
    if not params:
        return None, (400, 200)
    if params[0].image_size is not None:
        return None, params[0].image_size
    return None, (max(one.crop[1] + one.crop[3] for one in params), max(one.crop[0] + one.crop[2] for one in params))


def _facts(inspection: Inspection) -> Iterator[tuple[str, str, Color]]:
    sample = inspection.sample
    if inspection.problem:
        yield "replay", inspection.problem, _ALARM
    if inspection.image is not None and sample.image is not None:
        width, height = inspection.image.size
        yield "image", f"{width} x {height} pixels, {sample.image_extension}, {len(sample.image):,} bytes", _INK
    if sample.url is not None:
        yield "url", sample.url, _INK
    if inspection.augmentations:
        yield "augmentations", f"{len(inspection.augmentations)} stored; their crops are drawn", _INK
    names = [name for name, _ in inspection.teachers]
    if inspection.card is not None and names:
        yield "teachers", ", ".join(names), _INK


def _box(params: AugmentationParams, corner: tuple[int, int], scale: float) -> Box:
    top, left, height, width = params.crop
    x, y = round(corner[0] + left * scale), round(corner[1] + top * scale)
    right, bottom = round(corner[0] + (left + width) * scale), round(corner[1] + (top + height) * scale)
    return x, y, max(x, right - 1), max(y, bottom - 1)


def _draw_crop(draw: ImageDraw.ImageDraw, box: Box, color: Color, *, outlined: bool) -> None:
    left, top, right, bottom = box
    if outlined:
        # A dark line around the bright one shows on every background; too many of them hide the image.
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), None, (0, 0, 0), 4)
    draw.rectangle(box, None, color, 2)


def _draw_badge(draw: ImageDraw.ImageDraw, number: int, box: Box, size: int, *, corner: int | None = None) -> None:
    """Draw a number into a corner of a box, each number's into another by default: crops often start at one place."""
    left, top, right, bottom = box
    font = _font(size)
    width, height = round(font.getlength(str(number + 1))) + 8, size + 5
    from_right, from_bottom = divmod(number % 4 if corner is None else corner, 2)
    left = max(left, right + 1 - width) if from_right else left
    top = max(top, bottom + 1 - height) if from_bottom else top
    draw.rectangle((left, top, left + width, top + height), _color(number))
    draw.text((left + 4, top + 1), str(number + 1), (0, 0, 0), font)


def _draw_augmentations(sheet: _Sheet, inspection: Inspection) -> None:
    replayed = inspection.image is not None and not inspection.problem
    sheet.heading("Augmentations" + ("" if replayed else ", which cannot be replayed"))
    params = inspection.augmentations
    for first in range(0, len(params), _COLUMNS):
        top = end = sheet.y
        for column, one in enumerate(params[first : first + _COLUMNS]):
            left = _MARGIN + column * (TILE + _GAP)
            text_top = top
            if replayed:
                sheet.room(TILE)
                sheet.paste(_replay(inspection, one), (left, top))
                text_top += TILE + 6
            number = first + column
            draw = sheet.room(TILE)
            _draw_badge(draw, number, (left, top, left + TILE, top + TILE), 14, corner=0)
            if not replayed:
                text_top += 24
            size = one.image_size or (inspection.image.size if inspection.image else None)
            bottom = text_top
            for words in describe_operations(one) or ("the crop alone",):
                bottom = sheet.text(words, 15, left=left, width=TILE, y=bottom)
            bottom = sheet.text(describe_crop(one, size), 13, _FAINT, left=left, width=TILE, y=bottom)
            end = max(end, bottom)
        sheet.y = end + _GAP


def _replay(inspection: Inspection, params: AugmentationParams) -> Image.Image:
    policy = inspection.card.augmentation if inspection.card is not None else None
    assert inspection.image is not None, "what has no image is not replayed"
    tile = (policy or datacompdr_augmentation(TILE)).apply(inspection.image, params)
    return tile if tile.size == (TILE, TILE) else tile.resize((TILE, TILE), Image.Resampling.LANCZOS)


def _draw_captions(sheet: _Sheet, inspection: Inspection) -> None:
    scored = [caption for caption in inspection.captions if caption.similarities]
    names = [name for name, _ in inspection.teachers]
    sheet.heading("Captions" + (", and their mean cosine similarity with the augmented images" if scored else ""))
    column = 176
    scores = column * len(names)
    if len(names) > 1 or inspection.card is not None:
        end = sheet.y
        for index, name in enumerate(names):
            left = _WIDTH - _MARGIN - scores + index * column + 12
            end = max(end, sheet.text(name, 13, _FAINT, left=left, width=column - 16, y=sheet.y))
        sheet.y = end + 4
    for source, captions in _by_source(inspection.captions):
        sheet.text("real" if source == "real" else f"synthetic, {source}", 13, _FAINT)
        for caption in captions:
            top = sheet.y
            end = sheet.text(caption.text, 18, width=_INNER - scores - 20, y=top)
            for index, one in enumerate(caption.similarities):
                left = _WIDTH - _MARGIN - scores + index * column + 12
                _draw_score(sheet, one.mean, left, top, column - 24)
            sheet.y = end + 6
        sheet.space(8)


def _by_source(captions: Sequence[Caption]) -> Iterator[tuple[str, list[Caption]]]:
    for source in dict.fromkeys(caption.source for caption in captions):
        yield source, [caption for caption in captions if caption.source == source]


def _draw_score(sheet: _Sheet, value: float, left: int, top: int, width: int) -> None:
    draw = sheet.room(30)
    draw.text((left, top + 2), f"{value:.3f}", _INK, _font(16))
    start, end = left + 52, left + width
    draw.rectangle((start, top + 8, end, top + 16), _EMPTY)
    if value > 0:
        draw.rectangle((start, top + 8, start + round((end - start) * min(value, 1.0)), top + 16), _BAR)


def _color(number: int) -> Color:
    # Neighbours in the list get hues far apart.
    red, green, blue = colorsys.hsv_to_rgb((number * 0.618034) % 1.0, 0.62, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)

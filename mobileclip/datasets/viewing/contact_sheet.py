"""A contact sheet of one sample: the image with its crops, every augmentation replayed, and the captions."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from mobileclip.data.augmentation.replay import AugmentationParams, datacompdr_augmentation
from mobileclip.data.images.resize import resize
from mobileclip.datasets.viewing.canvas import (
    ALARM,
    BAR,
    EMPTY,
    FAINT,
    GAP,
    INK,
    INNER,
    MARGIN,
    PAPER,
    RULE,
    TILE,
    WIDTH,
    Sheet,
    Tile,
    font_of,
)
from mobileclip.datasets.viewing.inspection import Caption, Inspection, describe_crop, describe_operations
from mobileclip.inputs import Color

_IMAGE_BOX = (3 * TILE + 2 * GAP, 460)
_MAX_OUTLINED = 12
# As high as a number that stands in no picture.
_BADGE = 20

Box = tuple[int, int, int, int]


def draw_sheet(inspection: Inspection) -> Image.Image:
    """Return a contact sheet, as high as it needs to be.

    Args:
        inspection: of a sample with an image or without, reinforced or plain.
    """
    sheet = Sheet()
    sheet.text(inspection.sample.key, 26)
    sheet.text(inspection.shard, 14, FAINT)
    sheet.space(14)
    _draw_source(sheet, inspection)
    if inspection.augmentations:
        _draw_augmentations(sheet, inspection)
    _draw_captions(sheet, inspection)
    return sheet.image()


def _draw_source(sheet: Sheet, inspection: Inspection) -> None:
    """Draw the image with its crops, and what is known about it at its side."""
    image, size = _source(inspection)
    scale = min(_IMAGE_BOX[0] / size[0], _IMAGE_BOX[1] / size[1])
    shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    left, top = MARGIN, sheet.y
    sheet.room(shown[1])
    if image is not None:
        sheet.paste(resize(image, shown, "lanczos"), (left, top))
    draw = sheet.room(shown[1])
    if image is None:
        draw.rectangle((left, top, left + shown[0] - 1, top + shown[1] - 1), EMPTY, RULE)
    count = len(inspection.augmentations)
    boxes = [_box(params, (left, top), scale) for params in inspection.augmentations]
    for number, box in enumerate(boxes):
        _draw_crop(draw, box, _color(number), outlined=count <= _MAX_OUTLINED)
    for number, box in enumerate(boxes):
        _draw_badge(draw, number, box, 12)
    side = left + shown[0] + 2 * GAP
    end = top
    for title, text, color in _facts(inspection):
        end = sheet.text(title, 13, FAINT, left=side, width=WIDTH - MARGIN - side, y=end)
        end = sheet.text(text, 16, color, left=side, width=WIDTH - MARGIN - side, y=end) + 10
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
        yield "replay", inspection.problem, ALARM
    if inspection.image is not None and sample.image is not None:
        width, height = inspection.image.size
        yield "image", f"{width} x {height} pixels, {sample.image_extension}, {len(sample.image):,} bytes", INK
    if sample.url is not None:
        yield "url", sample.url, INK
    if inspection.augmentations:
        yield "augmentations", f"{len(inspection.augmentations)} stored; their crops are drawn", INK
    names = [name for name, _ in inspection.teachers]
    if inspection.card is not None and names:
        yield "teachers", ", ".join(names), INK


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
    font = font_of(size)
    width, height = round(font.getlength(str(number + 1))) + 8, size + 5
    from_right, from_bottom = divmod(number % 4 if corner is None else corner, 2)
    left = max(left, right + 1 - width) if from_right else left
    top = max(top, bottom + 1 - height) if from_bottom else top
    draw.rectangle((left, top, left + width, top + height), _color(number))
    draw.text((left + 4, top + 1), str(number + 1), (0, 0, 0), font)


def _draw_augmentations(sheet: Sheet, inspection: Inspection) -> None:
    replayed = inspection.image is not None and not inspection.problem
    sheet.heading("Augmentations" + ("" if replayed else ", which cannot be replayed"))
    tiles = []
    for number, one in enumerate(inspection.augmentations):
        picture = _replay(inspection, one) if replayed else Image.new("RGB", (TILE, _BADGE), PAPER)
        _draw_badge(ImageDraw.Draw(picture), number, (0, 0, TILE, TILE), 14, corner=0)
        size = one.image_size or (inspection.image.size if inspection.image else None)
        words = describe_operations(one) or ("the crop alone",)
        lines = (*((text, 15, INK) for text in words), (describe_crop(one, size), 13, FAINT))
        tiles.append(Tile(picture=picture, lines=lines))
    sheet.tiles(tiles)


def _replay(inspection: Inspection, params: AugmentationParams) -> Image.Image:
    policy = inspection.card.augmentation if inspection.card is not None else None
    assert inspection.image is not None, "what has no image is not replayed"
    tile = (policy or datacompdr_augmentation(TILE)).apply(inspection.image, params)
    return tile if tile.size == (TILE, TILE) else resize(tile, (TILE, TILE), "lanczos")


def _draw_captions(sheet: Sheet, inspection: Inspection) -> None:
    scored = [caption for caption in inspection.captions if caption.similarities]
    names = [name for name, _ in inspection.teachers]
    sheet.heading("Captions" + (", and their mean cosine similarity with the augmented images" if scored else ""))
    column = 176
    scores = column * len(names)
    if len(names) > 1 or inspection.card is not None:
        end = sheet.y
        for index, name in enumerate(names):
            left = WIDTH - MARGIN - scores + index * column + 12
            end = max(end, sheet.text(name, 13, FAINT, left=left, width=column - 16, y=sheet.y))
        sheet.y = end + 4
    for source, captions in _by_source(inspection.captions):
        sheet.text("real" if source == "real" else f"synthetic, {source}", 13, FAINT)
        for caption in captions:
            top = sheet.y
            end = sheet.text(caption.text, 18, width=INNER - scores - 20, y=top)
            for index, one in enumerate(caption.similarities):
                left = WIDTH - MARGIN - scores + index * column + 12
                _draw_score(sheet, one.mean, left, top, column - 24)
            sheet.y = end + 6
        sheet.space(8)


def _by_source(captions: Sequence[Caption]) -> Iterator[tuple[str, list[Caption]]]:
    for source in dict.fromkeys(caption.source for caption in captions):
        yield source, [caption for caption in captions if caption.source == source]


def _draw_score(sheet: Sheet, value: float, left: int, top: int, width: int) -> None:
    draw = sheet.room(30)
    draw.text((left, top + 2), f"{value:.3f}", INK, font_of(16))
    start, end = left + 52, left + width
    draw.rectangle((start, top + 8, end, top + 16), EMPTY)
    if value > 0:
        draw.rectangle((start, top + 8, start + round((end - start) * min(value, 1.0)), top + 16), BAR)


def _color(number: int) -> Color:
    # Neighbours in the list get hues far apart.
    red, green, blue = colorsys.hsv_to_rgb((number * 0.618034) % 1.0, 0.62, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)

"""Sheets of examples: the worst classes with what they are taken for, and what is found for texts and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobileclip.evaluation.report.confusion import ConfusedClass
from mobileclip.evaluation.report.details import DatasetDetails
from mobileclip.evaluation.report.examples import ImageQuery, TextQuery
from mobileclip.evaluation.report.figures import Theme, shortened
from mobileclip.evaluation.report.sheet import Sheet, line_height, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG = "\N{HEAVY CHECK MARK}", "\N{HEAVY MULTIPLICATION X}"

# Inches.
_MARGIN, _HEAD, _GAP = 0.35, 0.75, 0.14
_SMALL, _TILE = 0.62, 1.05
_QUERY_WIDTH, _ANSWER = 2.3, 0.2


def draw_confusion(details: DatasetDetails, theme: Theme) -> Figure:
    """Return a sheet of the worst classes, each with its recall, an example and what it is taken for.

    Args:
        details: with at least one confused class.
        theme: the colours.
    """
    row = _SMALL + _GAP
    sheet = Sheet(8.4, 2 * _MARGIN + _HEAD + row * len(details.confused), theme)
    _heading(sheet, f"Least found classes of {details.dataset}", f"{details.model}; {details.num_images:,} images")
    for number, one in enumerate(details.confused):
        _draw_class(sheet, one, _MARGIN + _HEAD + number * row)
    return sheet.figure


def draw_retrieval(details: DatasetDetails, theme: Theme) -> Figure:
    """Return a sheet of texts with the images found for them, and of images with the captions found for them.

    What is right has a tick and a frame of one colour, what is wrong a cross and a frame of another.

    Args:
        details: with at least one query.
        theme: the colours.
    """
    num_answers = max((len(one.answers) for one in details.text_queries), default=0)
    num_texts = max((len(one.answers) for one in details.image_queries), default=0)
    tile_row = _TILE + 0.3
    text_row = max(_TILE, _ANSWER * (num_texts + 1)) + _GAP
    heights = (tile_row * len(details.text_queries), text_row * len(details.image_queries))
    width = 2 * _MARGIN + _QUERY_WIDTH + (_TILE + _GAP) * max(num_answers + 1, 5)
    between = 0.45
    sheet = Sheet(width, 2 * _MARGIN + _HEAD + 2 * between + sum(heights), theme)
    _heading(
        sheet,
        f"What is found on {details.dataset}",
        f"{details.model}; queries evenly spread over {details.num_images:,} images, not chosen by how well they go",
    )
    y = _MARGIN + _HEAD
    sheet.text(_MARGIN, y, "Images for a text", size=10.5, bold=True)
    for number, query in enumerate(details.text_queries):
        _draw_text_query(sheet, query, y + between - 0.1 + number * tile_row, num_answers)
    y += between + heights[0]
    sheet.text(_MARGIN, y, "Captions for an image", size=10.5, bold=True)
    for number, found in enumerate(details.image_queries):
        _draw_image_query(sheet, found, y + between - 0.1 + number * text_row)
    return sheet.figure


def _heading(sheet: Sheet, title: str, below: str) -> None:
    sheet.text(_MARGIN, _MARGIN, title, size=13)
    sheet.text(_MARGIN, _MARGIN + line_height(13), below, size=9, color=sheet.theme.faint)


def _draw_class(sheet: Sheet, one: ConfusedClass, y: float) -> None:
    left = _MARGIN + _SMALL + _GAP
    sheet.picture(_MARGIN, y, _SMALL, one.picture)
    sheet.text(left, y + 0.02, shortened(one.name, 30), bold=True)
    sheet.text(left, y + 0.22, f"{one.num_right} of {one.num_images} found", size=8, color=sheet.theme.faint)
    sheet.bar(left, y + 0.43, 2.2, 0.09, fraction=one.recall, color=sheet.theme.published)
    sheet.text(left + 2.55, y + 0.02, "taken for", size=8, color=sheet.theme.faint)
    for number, line in enumerate(wrapped(mistakes(one), 58, 2)):
        sheet.text(left + 2.55, y + 0.2 + number * line_height(9), line)


def mistakes(one: ConfusedClass) -> str:
    """Return what a class is taken for in words: `wolf 12 times, fox once and 3 others`."""
    parts = [f"{name} {_times(count)}" for name, count in one.taken_for.items()]
    more = one.num_mistakes - len(one.taken_for)
    return ", ".join(parts) + (f" and {more} other{'s' if more > 1 else ''}" if more else "")


def similarity_text(similarity: float) -> str:
    """Return a cosine in two digits."""
    return f"{similarity:.2f}".replace("-", "\N{MINUS SIGN}")


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _draw_text_query(sheet: Sheet, query: TextQuery, y: float, num_answers: int) -> None:
    for number, line in enumerate(wrapped(query.text, 31, 4)):
        sheet.text(_MARGIN, y + number * line_height(9), line)
    sheet.text(_MARGIN, y + _TILE - 0.12, f"right image at place {query.rank}", size=8, color=sheet.theme.faint)
    for number, answer in enumerate(query.answers):
        x = _MARGIN + _QUERY_WIDTH + number * (_TILE + _GAP)
        color = sheet.theme.published if answer.right else sheet.theme.measured
        sheet.picture(x, y, _TILE, answer.picture, frame=color)
        sign = f"{RIGHT if answer.right else WRONG} {similarity_text(answer.similarity)}"
        sheet.text(x + _TILE / 2, y + _TILE + 0.04, sign, size=8, color=color, align="center")
    if query.rank > len(query.answers):
        x = _MARGIN + _QUERY_WIDTH + num_answers * (_TILE + _GAP)
        sheet.picture(x, y, _TILE, query.right.picture)
        below = f"right: {similarity_text(query.right.similarity)}"
        sheet.text(x + _TILE / 2, y + _TILE + 0.04, below, size=8, color=sheet.theme.faint, align="center")


def _draw_image_query(sheet: Sheet, query: ImageQuery, y: float) -> None:
    sheet.picture(_MARGIN, y, _TILE, query.picture)
    left = _MARGIN + _TILE + 2 * _GAP
    characters = round((sheet.width - left - _MARGIN - 0.8) / 0.083)
    for number, answer in enumerate(query.answers):
        color = sheet.theme.published if answer.right else sheet.theme.measured
        top = y + number * _ANSWER
        sheet.text(left, top, f"{RIGHT if answer.right else WRONG} {similarity_text(answer.similarity)}", color=color)
        sheet.text(left + 0.65, top, shortened(answer.text, characters))
    if query.rank > len(query.answers):
        top = y + len(query.answers) * _ANSWER
        sheet.text(left, top, f"first right caption at place {query.rank}", size=8, color=sheet.theme.faint)

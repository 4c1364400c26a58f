"""A plot to judge a filter by: the distribution of similarities, with samples at its ends and around the cut-off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import numpy as np
from PIL import Image

from mobileclip.data.images.limits import ImageError
from mobileclip.data.samples.members import parse_sample
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import parse_each, read_shard
from mobileclip.data.skips import Skip
from mobileclip.datasets.curation.filtering import FilterReport, FilterSpec
from mobileclip.datasets.curation.scores import Scores
from mobileclip.datasets.viewing.canvas import (
    ALARM,
    BAR,
    COLUMNS,
    FAINT,
    INK,
    INNER,
    MARGIN,
    RULE,
    TILE,
    Sheet,
    Tile,
    load_shown,
)

_HEIGHT = 180
# Whether its samples are kept, and whether they are the most similar ones of these.
_ROWS = {
    "left out, the least similar": (False, False),
    "left out, the most similar": (False, True),
    "kept, the least similar": (True, False),
    "kept, the most similar": (True, True),
}


@attrs.frozen(order=True)
class _Found:
    """A sample of a row: what it is sorted by, its similarity, its shard and its key."""

    distance: float
    similarity: float
    shard: str
    key: str


def draw_filter(spec: FilterSpec, report: FilterReport) -> Image.Image:
    """Return the spread of similarities and four rows of samples: worst, nearly kept, just kept, best.

    Samples are read again from their shards; those without images show their captions alone.

    Args:
        spec: the choices of the filter.
        report: what came of it.

    Raises:
        ValueError: if the scores cannot be read.
    """
    scores = Scores.open(spec.scores)
    chosen = {title: _ends(spec, scores, report.threshold, *which) for title, which in _ROWS.items()}
    samples = _read(found for row in chosen.values() for found in row)
    sheet = Sheet()
    sheet.text(str(report), 20)
    sheet.text(f"{spec.scores}: {spec.caption} captions, {spec.teacher} of the teachers", 14, FAINT)
    _draw_spread(sheet, report)
    for title, row in chosen.items():
        sheet.heading(title)
        _draw_row(sheet, row, samples)
    return sheet.image()


def _ends(spec: FilterSpec, scores: Scores, threshold: float, is_kept: bool, from_above: bool) -> list[_Found]:  # noqa: FBT001 - a row's two halves
    """Return the least or the most similar samples of those that are kept, or of those that are not."""
    best: list[_Found] = []
    for one in scores.shards:
        values = one.similarity(spec.caption, spec.teacher)
        places = np.flatnonzero((values >= threshold) if is_kept else (values < threshold))
        distances = -values[places] if from_above else values[places]
        order = np.argsort(distances)[:COLUMNS]
        # A shard's keys are read only where it may have one of the row.
        if len(order) and (len(best) < COLUMNS or distances[order[0]] < best[-1].distance):
            keys = one.keys
            best += [
                _Found(float(distances[at]), float(values[places[at]]), one.shard, keys[places[at]]) for at in order
            ]
            best = sorted(best)[:COLUMNS]
    return best


def _read(chosen: Iterable[_Found]) -> dict[tuple[str, str], ImageTextSample]:
    """Return the samples by shard and key; what cannot be read any more is missing."""
    wanted: dict[str, set[str]] = {}
    for one in chosen:
        wanted.setdefault(one.shard, set()).add(one.key)
    samples: dict[tuple[str, str], ImageTextSample] = {}
    skips: list[Skip] = []
    for shard, keys in wanted.items():
        raws = (raw for raw in read_shard(shard, skips.append) if raw.key in keys)
        samples |= {(shard, sample.key): sample for sample in parse_each(raws, parse_sample, skips.append)}
    return samples


def _draw_spread(sheet: Sheet, report: FilterReport) -> None:
    """Draw a histogram of the similarities that there are, with a line where the filter cuts."""
    sheet.space(20)
    present = np.flatnonzero(report.counts)
    first, last = int(present[0]), int(present[-1]) + 1
    counts, edges = report.counts[first:last], report.edges[first : last + 1]
    draw, bottom = sheet.room(_HEIGHT + 60), sheet.y + _HEIGHT
    wide = INNER / len(counts)
    for number, count in enumerate(counts):
        left, top = MARGIN + number * wide, bottom - _HEIGHT * int(count) / int(counts.max())
        draw.rectangle((left, top, max(left, left + wide - 1), bottom), BAR)
    cut = MARGIN + INNER * float(np.clip((report.threshold - edges[0]) / (edges[-1] - edges[0]), 0, 1))
    draw.line((cut, sheet.y, cut, bottom), ALARM, 2)
    draw.line((MARGIN, bottom, MARGIN + INNER, bottom), RULE, 1)
    sheet.y = bottom + 6
    sheet.text(f"similarity from {edges[0]:.2f} to {edges[-1]:.2f}; the line is at {report.threshold:.4f}", 13, FAINT)


def _draw_row(sheet: Sheet, row: Sequence[_Found], samples: dict[tuple[str, str], ImageTextSample]) -> None:
    if not row:
        sheet.text("none", 15, FAINT)
        return
    tiles = []
    for found in row:
        sample = samples.get((found.shard, found.key))
        picture = None if sample is None or sample.image is None else _picture(sample.image)
        caption = "cannot be read any more" if sample is None else sample.captions[0]
        lines = ((f"{found.similarity:.4f}", 15, INK), (caption[:200], 14, INK), (found.key, 12, FAINT))
        tiles.append(Tile(picture=picture, lines=lines))
    sheet.tiles(tiles)


def _picture(data: bytes) -> Image.Image | None:
    try:
        image = load_shown(data)
    except ImageError:
        return None
    image.thumbnail((TILE, TILE))
    return image

"""A page to judge a filter by: the distribution of similarities, with samples at its ends and around the cut-off."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
from PIL import Image, ImageDraw

from mobileclip.data.images.limits import ImageError
from mobileclip.data.samples.members import parse_sample
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import parse_each, read_shard
from mobileclip.data.skips import Skip
from mobileclip.datasets.curation.filtering import FilterReport, FilterSpec
from mobileclip.datasets.curation.scores import Scores
from mobileclip.datasets.viewing.page import Section, Thumbnail, load_shown, write_pictures

_SPREAD = (400, 160)
_IN_A_ROW = 5
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


def write_filter_page(path: Path, spec: FilterSpec, report: FilterReport) -> None:
    """Write the spread of similarities and four rows of samples: worst, nearly kept, just kept, best.

    Samples are read again from their shards; those without images show their captions alone.

    Args:
        path: the HTML file; replaced whole.
        spec: the choices of the filter.
        report: what came of it.

    Raises:
        ValueError: if the scores cannot be read.
        OSError: if the page cannot be written.
    """
    scores = Scores.open(spec.scores)
    chosen = {title: _ends(spec, scores, report.threshold, *which) for title, which in _ROWS.items()}
    samples = _read(found for row in chosen.values() for found in row)
    sections = [Section(pictures=[_spread(report)])]
    for title, row in chosen.items():
        notes = () if row else ("none",)
        sections.append(Section(title=title, notes=notes, pictures=[_shown(found, samples) for found in row]))
    about = f"{spec.scores}: {spec.caption} captions, {spec.teacher} of the teachers"
    write_pictures(path, str(report), sections, notes=(about,))


def _ends(spec: FilterSpec, scores: Scores, threshold: float, is_kept: bool, from_above: bool) -> list[_Found]:  # noqa: FBT001 - a row's two halves
    """Return the least or the most similar samples of those that are kept, or of those that are not."""
    best: list[_Found] = []
    for one in scores.shards:
        values = one.similarity(spec.caption, spec.teacher)
        places = np.flatnonzero((values >= threshold) if is_kept else (values < threshold))
        distances = -values[places] if from_above else values[places]
        order = np.argsort(distances)[:_IN_A_ROW]
        # A shard's keys are read only where it may have one of the row.
        if len(order) and (len(best) < _IN_A_ROW or distances[order[0]] < best[-1].distance):
            keys = one.keys
            best += [
                _Found(float(distances[at]), float(values[places[at]]), one.shard, keys[places[at]]) for at in order
            ]
            best = sorted(best)[:_IN_A_ROW]
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


def _spread(report: FilterReport) -> Thumbnail:
    """Return a histogram of the similarities that there are, with a line where the filter cuts."""
    present = np.flatnonzero(report.counts)
    first, last = int(present[0]), int(present[-1]) + 1
    counts, edges = report.counts[first:last], report.edges[first : last + 1]
    width, height = _SPREAD
    picture = Image.new("RGB", _SPREAD, (238, 236, 230))
    draw = ImageDraw.Draw(picture)
    for number, count in enumerate(counts):
        left, top = number * width / len(counts), height * (1 - int(count) / int(counts.max()))
        draw.rectangle((left, top, max(left, left + width / len(counts) - 1), height), (58, 110, 165))
    cut = width * float(np.clip((report.threshold - edges[0]) / (edges[-1] - edges[0]), 0, 1))
    draw.line((cut, 0, cut, height), (176, 42, 32), 2)
    line = f"similarity from {edges[0]:.2f} to {edges[-1]:.2f}; the line is at {report.threshold:.4f}"
    return Thumbnail(picture=picture, lines=(line,))


def _shown(found: _Found, samples: dict[tuple[str, str], ImageTextSample]) -> Thumbnail:
    sample = samples.get((found.shard, found.key))
    picture = None
    if sample is not None and sample.image is not None:
        with suppress(ImageError):
            picture = load_shown(sample.image)
    caption = "cannot be read any more" if sample is None else sample.captions[0]
    return Thumbnail(picture=picture, lines=(f"{found.similarity:.4f}", caption[:200], found.key))

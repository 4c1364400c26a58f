"""Selects the samples with the best-matching captions, as in DataComp and DFN, and writes an HTML page of examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from attrs import validators
from PIL import Image, ImageDraw

from mobileclip.data.images.limits import ImageError
from mobileclip.data.loading.uids import Uids, write_uids
from mobileclip.data.samples.members import parse_sample
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import parse_each, read_shard
from mobileclip.data.skips import Skip
from mobileclip.datasets.curation.scores import CAPTIONS, MEAN, Caption, Scores
from mobileclip.datasets.inspection import Section, Thumbnail, load_shown, write_images
from mobileclip.progress import track
from mobileclip.strict import strict

# Number of bins for cosine similarities from -1 to 1; the threshold for a share is exact to two millionths.
_NUM_BINS = 1_000_000
_SHOWN_BINS = 200


@attrs.frozen(kw_only=True, field_transformer=strict)
class FilterSpec:
    """The settings of a filter: scores, caption, teacher, and either a share of samples or a similarity threshold.

    Args:
        scores: folder written by `score_shards`.
        output: `.npy` file to write, with the uids of the kept samples.
        caption: caption to compare with the image: `real`, `synthetic` (mean over synthetic captions), or `best` (best
            synthetic caption).
        teacher: name of a teacher, or `mean` for the mean over all teachers.
        share: fraction of samples to keep, at most 1; None if `threshold` is set. The filter keeps the most similar
            samples, including ties.
        threshold: minimum cosine similarity of kept samples, from -1 to 1; None if `share` is set.

    Raises:
        ValueError: if `share` and `threshold` are both set or both None, or an option is out of range.
    """

    scores: Path
    output: Path
    caption: Caption = attrs.field(default="real", validator=validators.in_(CAPTIONS))
    teacher: str = MEAN
    share: float | None = attrs.field(default=None, validator=validators.optional([validators.gt(0), validators.le(1)]))
    threshold: float | None = attrs.field(
        default=None, validator=validators.optional([validators.ge(-1), validators.le(1)])
    )

    def __attrs_post_init__(self) -> None:
        if (self.share is None) == (self.threshold is None):
            raise ValueError("set either `share` or `threshold`, to select the samples to keep")


@attrs.frozen(kw_only=True, eq=False)
class FilterReport:
    """The result of a filter: number of kept samples, threshold, and distribution of similarities.

    Shape:
        counts: (bins,); edges: (bins + 1,).

    Args:
        num_samples: number of samples before filtering.
        num_kept: number of kept samples.
        num_without: number of removed samples without a caption of the chosen kind.
        threshold: minimum cosine similarity of kept samples.
        counts: number of samples per similarity bin.
        edges: edges of the similarity bins, from -1 to 1.
    """

    num_samples: int
    num_kept: int
    num_without: int
    threshold: float
    counts: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]

    def __str__(self) -> str:
        """Return the report as one or two sentences."""
        share = self.num_kept / self.num_samples if self.num_samples else 0.0
        text = (
            f"{self.num_kept:,} of {self.num_samples:,} samples kept ({share:.1%}), with a similarity of at least "
            f"{self.threshold:.4f}"
        )
        return text + (f"; {self.num_without:,} have no caption of this kind" if self.num_without else "")


def filter_samples(spec: FilterSpec) -> FilterReport:
    """Write the list of kept samples and return the report.

    Args:
        spec: the options.

    Raises:
        ValueError: if the folder has no scores, no sample has a caption of the chosen kind, or the teacher is unknown.
        OSError: if the list cannot be written.
    """
    scores = Scores.open(spec.scores)
    counts, num_samples, num_without = np.zeros(_NUM_BINS, np.int64), 0, 0
    for values, _ in _judged(spec, scores, "reading similarities"):
        known = values[np.isfinite(values)]
        num_samples, num_without = num_samples + len(values), num_without + len(values) - len(known)
        counts += np.bincount(_bins(known), minlength=_NUM_BINS)
    if num_samples == num_without:
        raise ValueError(f"no sample in {spec.scores} has a caption for --caption {spec.caption}; choose another kind")
    lowest = _lowest_bin(spec, counts, num_samples)

    def kept() -> Iterator[Uids]:
        for values, uids in _judged(spec, scores, "writing the list"):
            known = np.flatnonzero(np.isfinite(values))
            some = values[known]
            yield uids[known[_bins(some) >= lowest if spec.threshold is None else some >= spec.threshold]]

    num_kept = write_uids(spec.output, kept())
    return FilterReport(
        num_samples=num_samples,
        num_kept=num_kept,
        num_without=num_without,
        threshold=spec.threshold if spec.threshold is not None else 2 * lowest / _NUM_BINS - 1,
        counts=counts.reshape(_SHOWN_BINS, -1).sum(1),
        edges=np.linspace(-1, 1, _SHOWN_BINS + 1),
    )


def _judged(spec: FilterSpec, scores: Scores, title: str) -> Iterator[tuple[npt.NDArray[np.float32], Uids]]:
    for one in track(scores.shards, total=len(scores.shards), title=title, unit="shards"):
        yield one.similarity(spec.caption, spec.teacher), one.uids


def _bins(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    places = np.floor((values.astype(np.float64) + 1) * (_NUM_BINS / 2)).astype(np.int64)
    return np.clip(places, 0, _NUM_BINS - 1)


def _lowest_bin(spec: FilterSpec, counts: npt.NDArray[np.int64], num_samples: int) -> int:
    """Return the highest bin that, together with all bins above, has at least the requested share of samples."""
    if spec.share is None:
        return 0
    from_above = np.cumsum(counts[::-1])
    wanted = min(spec.share * num_samples, float(from_above[-1]))
    return _NUM_BINS - 1 - int(np.searchsorted(from_above, wanted))


_SPREAD = (400, 160)
_IN_A_ROW = 5
# For each row: whether its samples are kept, and whether they are the most similar of the kept or removed samples.
_ROWS = {
    "left out, the least similar": (False, False),
    "left out, the most similar": (False, True),
    "kept, the least similar": (True, False),
    "kept, the most similar": (True, True),
}


@attrs.frozen(order=True)
class _Found:
    """A sample in a row of the page: sort key, similarity, shard and sample key."""

    distance: float
    similarity: float
    shard: str
    key: str


def write_filter_page(path: Path, spec: FilterSpec, report: FilterReport) -> None:
    """Write a page with the distribution of similarities and four rows of samples: worst, nearly kept, just kept, best.

    The function reads samples from their shards; for samples without images, the page shows only the captions.

    Args:
        path: path of the HTML file; the function replaces the file atomically.
        spec: settings of the filter.
        report: result of the filter.

    Raises:
        ValueError: if the scores cannot be read.
        OSError: if the page cannot be written.
    """
    scores = Scores.open(spec.scores)
    chosen = {title: _ends(spec, scores, report.threshold, *which) for title, which in _ROWS.items()}
    samples = _read(found for row in chosen.values() for found in row)
    sections = [Section(thumbnails=[_spread(report)])]
    for title, row in chosen.items():
        notes = () if row else ("none",)
        sections.append(Section(title=title, notes=notes, thumbnails=[_shown(found, samples) for found in row]))
    about = f"{spec.scores}: {spec.caption} captions, teacher: {spec.teacher}"
    write_images(path, str(report), sections, notes=(about,))


def _ends(spec: FilterSpec, scores: Scores, threshold: float, is_kept: bool, from_above: bool) -> list[_Found]:  # noqa: FBT001 - a row's two halves
    """Return the least or the most similar samples among the kept or the removed samples."""
    best: list[_Found] = []
    for one in scores.shards:
        values = one.similarity(spec.caption, spec.teacher)
        places = np.flatnonzero((values >= threshold) if is_kept else (values < threshold))
        distances = -values[places] if from_above else values[places]
        order = np.argsort(distances)[:_IN_A_ROW]
        # The keys of a shard are read only if the shard may have a sample of the row.
        if len(order) and (len(best) < _IN_A_ROW or distances[order[0]] < best[-1].distance):
            keys = one.keys
            found = ((float(distances[at]), float(values[places[at]]), one.shard, keys[places[at]]) for at in order)
            best = sorted([*best, *(_Found(*fields) for fields in found)])[:_IN_A_ROW]
    return best


def _read(chosen: Iterable[_Found]) -> dict[tuple[str, str], ImageTextSample]:
    """Return the readable samples by shard and key."""
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
    """Return a histogram of the similarities, with a line at the threshold."""
    present = np.flatnonzero(report.counts)
    first, last = int(present[0]), int(present[-1]) + 1
    counts, edges = report.counts[first:last], report.edges[first : last + 1]
    width, height = _SPREAD
    image = Image.new("RGB", _SPREAD, (238, 236, 230))
    draw = ImageDraw.Draw(image)
    for number, count in enumerate(counts):
        left, top = number * width / len(counts), height * (1 - int(count) / int(counts.max()))
        draw.rectangle((left, top, max(left, left + width / len(counts) - 1), height), (58, 110, 165))
    cut = width * float(np.clip((report.threshold - edges[0]) / (edges[-1] - edges[0]), 0, 1))
    draw.line((cut, 0, cut, height), (176, 42, 32), 2)
    line = f"similarity from {edges[0]:.2f} to {edges[-1]:.2f}; the threshold is {report.threshold:.4f}"
    return Thumbnail(image=image, lines=(line,))


def _shown(found: _Found, samples: dict[tuple[str, str], ImageTextSample]) -> Thumbnail:
    sample = samples.get((found.shard, found.key))
    image = None
    if sample is not None and sample.image is not None:
        with suppress(ImageError):
            image = load_shown(sample.image)
    caption = "can no longer be read" if sample is None else sample.captions[0]
    return Thumbnail(image=image, lines=(f"{found.similarity:.4f}", caption[:200], found.key))

"""Writes the report of a run: tables, curves, and a page of images with answers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from examples.quickstart.emoji.on_disk import DataSplit
from examples.quickstart.scoring import COMPARED, Difference, Scores, SplitResults
from examples.quickstart.spec import TEACHERS, TITLES
from mobileclip.data import ViewAgreement
from mobileclip.datasets import Section, Thumbnail, load_shown, write_images
from mobileclip.storage import write_text
from mobileclip.training import plot_curves

_COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "text_to_image": "text → image R@1",
    "image_to_text": "image → text R@1",
}
# The rows with answers on the page of images, and the number of images.
_ON_SHEET = ("plain", "reinforced", TEACHERS)
_ON_PAGE = 12


@attrs.frozen(kw_only=True)
class Results:
    """The results of a run.

    Args:
        scores: scores in per cent, by row of the table (`TITLES`), seed and split.
        titles: titles of the test splits.
        num_images: number of images, by split.
        num_classes: number of classes in zero-shot classification, by test split.
        seconds: duration of each step in the final run.
        seconds_per_step: seconds per training step on one core, by row; the median over steps, averaged over seeds.
        agreement: share of the stored views that the teachers recognise.
        differences: differences of top-5 with their errors, by comparison, and by split or for all splits.
    """

    scores: dict[str, list[dict[str, Scores]]]
    titles: dict[str, str]
    num_images: dict[str, int]
    num_classes: dict[str, int]
    seconds: dict[str, float]
    seconds_per_step: dict[str, float]
    agreement: ViewAgreement | None
    differences: dict[str, dict[str, Difference]]


def write_report(
    output: Path, results: Results, split: DataSplit, found: Mapping[str, Mapping[str, SplitResults]], *, seed: int
) -> None:
    """Write report.md, curves.png and pictures.html.

    Args:
        output: folder of the run.
        results: results of the run.
        split: split whose images the page shows.
        found: results of the first seed, by row of the table and split.
        seed: seed of the choice of images on the page.
    """
    plot_curves(
        {path.parent.name: path for path in sorted((output / "runs").glob("*/metrics.jsonl"))}, output / "curves.png"
    )
    answers = {name: found[name][split.name].answers for name in _ON_SHEET}
    write_sheet(split, answers, output / "pictures.html", seed=seed)
    lines = [
        "# Quickstart\n",
        f"{results.num_images['train']} training pictures; everything below was never seen in training.\n",
        *tables(results),
        *([] if results.agreement is None else [f"\n{str(results.agreement).capitalize()}."]),
        "\n![curves](curves.png)\n\n[Test pictures taken by chance, with three answers](pictures.html)\n",
        "Seconds:\n",
        *(f"- {name}: {seconds:.0f}" for name, seconds in results.seconds.items()),
        "\nThe drawings' sources, licences and attributions are in `data/datacard.json`.\n",
    ]
    write_text(output / "report.md", "\n".join(lines))


def tables(results: Results) -> Iterator[str]:
    """Yield the lines of the tables, in Markdown."""
    yield "Zero-shot classification and retrieval in per cent, mean ± standard deviation over seeds. All rows of a seed"
    yield "see the same pictures and real captions in the same order."
    for split, title in results.titles.items():
        size = f"{results.num_images[split]} pictures, {results.num_classes[split]} concepts"
        yield f"\n## {title.capitalize()}: {size}\n"
        yield from _table("learned from", [*_COLUMNS.values(), "s per step"], dict(_rows(results, split)))
    yield "\n## How sure the differences are\n"
    yield "Points of top-5 ± standard error, of seeds and test pictures both; in brackets the two scores.\n"
    first = next(iter(results.differences.values()))
    heads = [f"{results.titles.get(name, name)} ({one.num_pictures})" for name, one in first.items()]
    cells = {
        title: [f"{one} ({one.earlier:.1f} to {one.later:.1f})" for one in row.values()]
        for title, row in results.differences.items()
    }
    yield from _table("top-5", heads, cells)


def _table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield f"| {title} | {' | '.join(heads)} |"
    yield "|" + "---|" * (1 + len(heads))
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"


def _rows(results: Results, split: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the table, and their differences for each seed."""
    for name, repeated in results.scores.items():
        cells = [_cell([getattr(one[split], column) for one in repeated]) for column in _COLUMNS]
        pace = results.seconds_per_step.get(name)
        yield TITLES[name], [*cells, "" if pace is None else f"{pace:.3f}"]
    for later, earlier in COMPARED:
        pairs = list(zip(results.scores[later], results.scores[earlier], strict=True))
        less = ([getattr(one[split], name) - getattr(other[split], name) for one, other in pairs] for name in _COLUMNS)
        yield f"{later} - {earlier}", [*(_cell(values, sign="+") for values in less), ""]


def _cell(values: list[float], *, sign: str = "") -> str:
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def write_sheet(split: DataSplit, answers: Mapping[str, Mapping[str, str]], path: Path, *, seed: int) -> None:
    """Write a page of random images, each with the true name and the models' answers, marked as right or wrong.

    Args:
        split: split with the images.
        answers: answers by model, then by the image's key.
        path: path of the HTML file.
        seed: seed of the choice of images.
    """
    samples, pictures = list(split.samples()), []
    for sample in random.Random(seed).sample(samples, min(_ON_PAGE, len(samples))):  # noqa: S311  nothing secret
        assert sample.image is not None, "the data set stores every picture"
        truth = sample.metadata["label"]
        said = [
            f"{'✓' if one[sample.key] == truth else '✗'} {name}: {one[sample.key]}" for name, one in answers.items()
        ]
        pictures.append(Thumbnail(image=load_shown(sample.image), lines=(truth, *said)))
    write_images(path, "Test pictures taken by chance, with answers", [Section(thumbnails=pictures)])

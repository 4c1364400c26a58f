"""The table, the pictures, and the report that holds both."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from examples.quickstart.commands import command
from examples.quickstart.emoji import DrawnDataset
from examples.quickstart.evaluate import Scores
from examples.quickstart.sheet import choose_pictures, count_right, write_sheet
from examples.quickstart.spec import TEACHERS, TITLES
from examples.quickstart.together import COMPARED, Together, together_table
from mobileclip.data import ViewAgreement
from mobileclip.terminal import print_table, say
from mobileclip.training import plot_curves

COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "text_to_image": "text → image R@1",
    "image_to_text": "image → text R@1",
}
_PUBLISHED = {
    "acc1": "top-1",
    "acc5": "top-5",
    "image_retrieval_recall@1": "text → image R@1",
    "text_retrieval_recall@1": "image → text R@1",
    "mean_recall@1": "mean R@1",
}
_PER_STEP = "s per step"
# Whose answers the page of pictures shows.
_ON_SHEET = ("plain", "reinforced", TEACHERS)
_REPEATED = "in per cent, mean ± standard deviation over seeds"


@attrs.frozen(kw_only=True)
class Results:
    """What came out.

    Args:
        scores: per cent, by row of the table (`TITLES`), seed and split.
        titles: what each test split is.
        num_images: pictures in each split.
        num_classes: concepts that zero-shot classification chooses from, by test split.
        seconds: what each part took in the run that finished.
        seconds_per_step: of training, one core a training, by row; the median over steps and the mean over seeds.
        agreement: how far the teachers recognise the stored views; None where that was not measured.
        published: metrics of the saved model, as fractions of one, by folder of the test data sets.
        together: how sure the differences of top-5 are, by what is compared, and by split or all of them.
    """

    scores: dict[str, list[dict[str, Scores]]]
    titles: dict[str, str]
    num_images: dict[str, int]
    num_classes: dict[str, int]
    seconds: dict[str, float]
    seconds_per_step: dict[str, float]
    agreement: ViewAgreement | None = None
    published: dict[str, dict[str, float]] = attrs.field(factory=dict)
    together: dict[str, dict[str, Together]] = attrs.field(factory=dict)


def print_results(results: Results) -> None:
    """Print the table to the terminal."""
    from rich.table import Column, Table

    for split in results.titles:
        title = f"{_heading(results, split)}; {_REPEATED}"
        table = Table(Column(no_wrap=True), *COLUMNS.values(), _PER_STEP, title=title)
        for cells in _rows(results, split):
            table.add_row(*cells)
        print_table(table, min_width=110)
    for title, found in results.together.items():
        told = "; ".join(f"{results.titles.get(name, name)}: {one}" for name, one in found.items())
        say(f"top-5, {title}, with the standard error of seeds and pictures: {told}")


def write_report(
    output: Path,
    results: Results,
    dataset: DrawnDataset,
    *,
    answers: Mapping[str, Mapping[str, Mapping[str, str]]],
    seed: int,
    model_path: Path,
    benchmarks: Path,
) -> None:
    """Write report.md, curves.png and pictures.html.

    Args:
        output: folder of the run.
        results: what came out.
        dataset: where the test pictures come from.
        answers: of the first seed, by row of the table, split and picture's key.
        seed: of the choice of the pictures on the page.
        model_path: the saved student.
        benchmarks: folder of the test data sets.
    """
    runs = {path.parent.name: path for path in sorted((output / "runs").glob("*/metrics.jsonl"))}
    plot_curves(runs, output / "curves.png")
    split = dataset.splits["test_renderings"]
    sheet = {name: answers[name][split.name] for name in _ON_SHEET}
    chosen = choose_pictures(list(split.samples()), seed=seed)
    write_sheet(chosen, sheet, output / "pictures.html")
    counts = ", ".join(f"{name} {number}" for name, number in count_right(chosen, sheet).items())
    on_sheet = f"Right answers in pictures.html, of {len(chosen)} test pictures taken by chance: {counts}"
    lines = [
        "# Quickstart\n",
        f"{results.num_images['train']} training pictures; everything below was never seen in training.\n",
        *_tables(results),
        *([] if results.agreement is None else [f"\nThe {results.agreement}."]),
        f"\n![curves](curves.png)\n\n[Test pictures, with three answers](pictures.html)\n\n{on_sheet}\n",
        f"```\n{command()} classify icon.png 'a cat' 'a heart' -m {model_path}\n```\n",
        *_published_lines(results, model_path, benchmarks),
        "\nSeconds:\n",
        *(f"- {name}: {seconds:.0f}" for name, seconds in results.seconds.items()),
        "\nThe drawings' sources, licences and attributions are in `data/datacard.json`.\n",
    ]
    (output / "report.md").write_text("\n".join(lines), encoding="utf-8")
    say(on_sheet)


def _tables(results: Results) -> Iterator[str]:
    yield f"Zero-shot classification and retrieval, {_REPEATED}; below the rows their differences in points."
    yield "All rows of a seed see the same pictures and real captions in the same order."
    for split in results.titles:
        yield f"\n## {_heading(results, split)}\n"
        yield "| learned from | " + " | ".join([*COLUMNS.values(), _PER_STEP]) + " |"
        yield "|" + "---|" * (2 + len(COLUMNS))
        for cells in (*_rows(results, split), *_differences(results, split)):
            yield "| " + " | ".join(cells) + " |"
    yield from together_table(results.together, results.titles)


def _heading(results: Results, split: str) -> str:
    title = results.titles[split].capitalize()
    return f"{title}: {results.num_images[split]} pictures, {results.num_classes[split]} concepts"


def _rows(results: Results, split: str) -> Iterator[list[str]]:
    for name, repeated in results.scores.items():
        cells = (_cell([getattr(one[split], column) for one in repeated]) for column in COLUMNS)
        pace = f"{results.seconds_per_step[name]:.3f}" if name in results.seconds_per_step else ""
        yield [TITLES[name], *cells, pace]


def _differences(results: Results, split: str) -> Iterator[list[str]]:
    for later, earlier in COMPARED:
        pairs = list(zip(results.scores[later], results.scores[earlier], strict=True))
        cells = (
            _cell([getattr(one[split], column) - getattr(other[split], column) for one, other in pairs], sign="+")
            for column in COLUMNS
        )
        yield [f"{later} - {earlier}", *cells, ""]


def _published_lines(results: Results, model_path: Path, benchmarks: Path) -> Iterator[str]:
    yield "\nThe saved model on the test pictures, in the layout in which the field shares data sets:\n"
    yield f"```\n{command()} eval {model_path} {benchmarks}/wds_*\n```\n"
    yield "| data set | " + " | ".join(_PUBLISHED.values()) + " |"
    yield "|" + "---|" * (1 + len(_PUBLISHED))
    for folder, metrics in results.published.items():
        cells = (f"{100 * metrics[name]:.1f}" if name in metrics else "" for name in _PUBLISHED)
        yield f"| {folder} | " + " | ".join(cells) + " |"
    yield (
        "\nThis layout has one right picture for a caption, where the first table takes any of the concept: captions "
        "that several pictures share are left out, and pictures without one of their own. Where no concept has two "
        "pictures, the numbers are the same."
    )


def _cell(values: list[float], *, sign: str = "") -> str:
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean

"""`mobileclip eval ...`: evaluate models and report the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.arguments import require_file
from mobileclip.evaluation.spec import EvaluationSpec
from mobileclip.terminal import print_table, say

if TYPE_CHECKING:
    from mobileclip.evaluation import DatasetResult, Difference


def evaluate(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL|DATA...")],
    /,
    *,
    spec: Annotated[
        EvaluationSpec,
        arg(name=""),
    ] = EvaluationSpec(),  # noqa: B008  frozen
    compare_published: Annotated[tuple[str, ...], arg(metavar="NAME")] = (),
    report: bool = False,
) -> None:
    """Evaluate one or several models, and print their results in one table.

    mobileclip eval my_s2.pt my_classes/

    mobileclip eval mobileclip_s0 mobileclip_s2=my_s2.pt open_clip:ViT-B-32/openai --suite quick --report

    A MODEL is a name such as mobileclip_s2 (the command downloads its weights once), a file of weights, a folder
    written by mobileclip hub save or mobileclip export, hf-hub:OWNER/NAME, NAME=FILE for a file that does not state its
    model, open_clip:MODEL/TAG, or open_clip:MODEL=FILE (extra `teachers`). LABEL= before a MODEL sets the model's
    label in the results, as in before=a/model.safetensors after=b/model.safetensors.

    DATA is a data set: a folder with one folder of images per class, a folder of images with captions, a .jsonl file,
    tar shards, a folder in the public layout, or a key such as vtab/pets. The prefix `probe:` before a data set
    with classes fits a linear probe on this data set. Without DATA, the command evaluates a suite of data sets.

    The command saves each result immediately; after an interruption, the same command resumes with the stored
    embeddings. At the end, the command lists the data sets that failed. mobileclip eval report has its own --help.

    Args:
        models: one or several models, then the data sets to evaluate the models on.
        spec: data sets and options of the evaluation.
        compare_published: published models to add to the table, such as mobileclip_s1; the table always includes
            the published results of models evaluated by name.
        report: write report.html, with plots as PNG files, and measure the latency for one image and one text.
    """
    from mobileclip.evaluation.run import evaluate_and_print, split_arguments

    evaluate_and_print(*split_arguments(models, spec), compare_published=compare_published, report=report)


def report(
    results: Annotated[Positional[Path | None], arg(metavar="RESULTS.jsonl")] = None,
    /,
    *,
    model: Annotated[str, arg(metavar="NAME")] = "mobileclip_s2",
) -> None:
    """Print a model's results on the 38 data sets with published results.

    mobileclip eval report results.jsonl --model mobileclip_s0

    RESULTS.jsonl has a line for each data set: {"key": "vtab/pets", "dataset": "Oxford-IIIT Pet", "metrics":
    {"main_metric": 0.9}}. Without the file, the command prints published results only.

    A star marks a difference larger than the noise. The noise is two standard errors of the difference between two
    accuracies, for the data set's number of images. Worst-group metrics and macro F1 have more noise.

    Args:
        results: your results, one line of JSON per data set.
        model: name of the published model to compare with.
    """
    from rich.table import Table

    from mobileclip.evaluation import compare_results, published_results, read_results

    if results is not None:
        require_file(results, "a file of results, results.jsonl")
    published = published_results(model)
    measured = {} if results is None else read_results(results)
    table = Table(title=f"{model}, in per cent", box=None)
    table.add_column("data set", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for title in ("measured here", "published", "difference", "noise"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = compare_results(measured, published)
    for row in rows:
        table.add_row(row.dataset, row.metric, *_cells(row))
    table.add_section()
    table.add_row("average", "", _average(measured), _average(published), "", "")
    print_table(table)
    num_stars = sum(row.stands_out for row in rows)
    both = sum(row.difference is not None for row in rows)
    if both:
        say(f"{num_stars} of {both} results differ by more than the noise (*).")


def _cells(row: Difference) -> tuple[str, str, str, str]:
    difference = "" if row.difference is None else f"{100 * row.difference:+.2f}{'*' if row.stands_out else ' '}"
    noise = "" if row.interval is None else f"{50 * (row.interval.high - row.interval.low):.2f}"
    return _per_cent(row.value), _per_cent(row.reference), difference, noise


def _average(results: dict[str, DatasetResult]) -> str:
    from mobileclip.evaluation import SUITE, suite_average

    there = sum(entry.key in results for entry in SUITE)
    return _per_cent(suite_average(results)) if there == len(SUITE) else f"{there} of {len(SUITE)}"


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"

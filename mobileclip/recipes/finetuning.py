"""Fine-tuning as a command: scores of a model on its tasks, and a report with a table, a plot and a JSON file.

`mobileclip.training.finetuning` contains the fine-tuning itself.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs
import torch

from mobileclip.charts import Line, Panel, write_chart
from mobileclip.data import BadSampleError, ImageTextSample, SkipReport
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import Session, paired_difference, proportion_interval
from mobileclip.evaluation.metrics import classification_hits, rank_captions
from mobileclip.serialization import to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say
from mobileclip.training.finetuning.run import FinetuneSpec, Results, Score, Scores, finetune
from mobileclip.training.finetuning.tasks import Task, label_of


def finetune_and_report(spec: FinetuneSpec) -> Results | None:
    """Fine-tune, then print and write the results; return the results (None in all processes but the first)."""
    results = finetune(spec, measure=evaluate_task, on_begin=lambda before: say(f"\n{table((before,))}\n"))
    if results is not None:
        write_report(spec.output, results)
    return results


def evaluate_task(
    model: DualEncoder, task: Task, templates: tuple[str, ...], class_names: tuple[str, ...] = ()
) -> Score:
    """Return the score of `model` on `task`.

    Args:
        model: model in training or evaluation mode; the function restores the mode.
        task: test data; the function skips, logs and counts unusable images.
        templates: prompt templates for class names.
        class_names: classes to choose from in addition to the classes in the data.

    Raises:
        ValueError: if the task has no images.
    """
    report = SkipReport()
    session = Session(model, show_progress=False)
    samples, image = session.embed_images(
        task.samples(report),
        _image,
        keep=lambda sample: attrs.evolve(sample, image=None),
        report=report,
        title=task.name,
    )
    if not samples:
        raise ValueError("the task has no images for evaluation; check the path or the split")
    found = partial(Score, task=task.name, num_images=len(image), num_skipped=report.num_skipped)
    if task.kind == "classes":
        labels = [label_of(sample) for sample in samples]
        names = sorted({*class_names, *labels})
        place = {name: index for index, name in enumerate(names)}
        classes = session.embed_classes(names, templates)
        targets = torch.tensor([place[label] for label in labels])
        hits = classification_hits(image, classes, targets).top1.tolist()
        return found(metric="top-1", value=100 * sum(hits) / len(hits), hits=tuple(hits))
    text = session.encode_texts([caption for sample in samples for caption in sample.captions])
    hits = rank_captions(image, text, [len(sample.captions) for sample in samples]).caption_hits.tolist()
    return found(metric="R@1", value=100 * sum(hits) / len(hits), hits=tuple(hits))


def _image(sample: ImageTextSample) -> bytes:
    if sample.image is None:
        raise BadSampleError("no_image", "the sample has a text, but no image")
    return sample.image


def table(rows: tuple[Scores, ...]) -> str:
    """Return the scores as a Markdown table with one row per task and one column per model."""
    heads = [_head(row, f"alpha {row.alpha:g}") for row in rows]
    lines = [["", "metric", "images", *heads]]
    tasks = [("new", [row.new for row in rows])]
    tasks += [("old", [row.old[index] for row in rows]) for index in range(len(rows[0].old))]
    for age, scores in tasks:
        first = scores[0]
        values = [f"{score.value:.1f}{_interval(score)}" for score in scores]
        left_out = f" ({first.num_skipped} skipped)" if first.num_skipped else ""
        lines.append([f"{age}: {first.task}", first.metric, f"{first.num_images}{left_out}", *values])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def _interval(score: Score) -> str:
    if not score.hits:
        return ""
    low, high = _ends(score)
    return f" ({low:.1f} to {high:.1f})"


def _ends(score: Score) -> tuple[float, float]:
    """Return the 95 % confidence interval, in per cent, of a score with known hits."""
    found = proportion_interval(min(sum(score.hits), len(score.hits)), len(score.hits))
    return 100 * found.low, 100 * found.high


def summary(results: Results) -> str:
    """Return one or two sentences that summarise the gain and the forgetting."""
    before, after = results.before, results.after
    gained = after.new.value - before.new.value
    sure = ""
    if before.new.hits and len(before.new.hits) == len(after.new.hits):  # hits of the same images
        interval = paired_difference(before.new.hits, after.new.hits).interval
        sure = f"; with 95 % confidence {100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
    said = (
        f"Fine-tuning took the new task from {before.new.value:.1f} to {after.new.value:.1f} "
        f"({gained:+.1f} points{sure})"
    )
    if not before.old:
        return f"{said}. The effect on old tasks is unknown: name old tasks with --retention-tasks."
    lost = after.mean_old - before.mean_old
    said += f" and the old tasks from {before.mean_old:.1f} to {after.mean_old:.1f} ({lost:+.1f})."
    between = results.rows[1:-1]
    if between:
        best = max(results.rows, key=lambda row: row.new.value + row.mean_old)
        said += (
            f" The best sum of both scores is at alpha {best.alpha:g}: {best.new.value:.1f} and {best.mean_old:.1f}; "
            "since alpha was selected on these images, the sum is slightly optimistic."
        )
    return said


def write_report(folder: Path, results: Results) -> None:
    """Write `results.json` and `report.md`, and `tradeoff.png` if there are old tasks and matplotlib is installed."""
    text = f"# Fine-tuning\n\n{table(results.rows)}\n\nPercentages, with 95 % intervals. {summary(results)}\n"
    if results.before.old and _plot(results, folder / "tradeoff.png"):
        text += "\n![New task against old tasks, from the original to the fine-tuned model](tradeoff.png)\n"
    write_text(folder / "report.md", text)
    write_text(folder / "results.json", to_json(results, indent=1))


def _plot(results: Results, path: Path) -> bool:
    heads = [_head(row, f"{row.alpha:g}") for row in results.rows]
    old, new = [row.mean_old for row in results.rows], [row.new.value for row in results.rows]
    y_label = f"new task: {results.before.new.task}, {results.before.new.metric}, %"
    title = f"new task {new[-1] - new[0]:+.1f} points, old tasks {old[-1] - old[0]:+.1f}"
    known = [_ends(row.new) for row in results.rows if row.new.hits]
    line = Line(x=old, y=new, names=heads, bars=known if len(known) == len(new) else ())
    try:
        write_chart([Panel(lines=[line], x_label="old tasks, mean, %", y_label=y_label, title=title)], path)
    except ModuleNotFoundError as error:
        say(f"there is no tradeoff.png: {error}")
        return False
    return True


def _head(row: Scores, otherwise: str) -> str:
    return {0.0: "original", 1.0: "fine-tuned"}.get(row.alpha, otherwise)

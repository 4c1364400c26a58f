"""The report of fine-tuning: a table, a plot of accuracy gained against accuracy lost, and the numbers as JSON."""

from __future__ import annotations

from pathlib import Path

from mobileclip.charts import Line, Panel, write_chart
from mobileclip.evaluation import PairedDifference, paired_difference, proportion_interval
from mobileclip.serialization import to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say
from mobileclip.training.finetuning import Results, Score, Scores


def table(rows: tuple[Scores, ...]) -> str:
    """Return the scores as a Markdown table, which reads as text too: a row for each task, a column for each model."""
    heads = [_head(row, f"alpha {row.alpha:g}") for row in rows]
    lines = [["", "metric", "pictures", *heads]]
    tasks = [("new", [row.new for row in rows])]
    tasks += [("old", [row.old[index] for row in rows]) for index in range(len(rows[0].old))]
    for age, scores in tasks:
        first = scores[0]
        values = [f"{score.value:.1f}{_interval(score)}" for score in scores]
        left_out = f" ({first.num_skipped} left out)" if first.num_skipped else ""
        lines.append([f"{age}: {first.task}", first.metric, f"{first.num_images}{left_out}", *values])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def differences(results: Results) -> str:
    """Return how sure the change of every task is, as a Markdown table; nothing where no picture's outcome is known."""
    pairs = [(results.before.new, results.after.new), *zip(results.before.old, results.after.old, strict=True)]
    known = [(before, difference) for before, after in pairs if (difference := _difference(before, after)) is not None]
    lines = [
        f"| {before.task} | {difference.num_questions} | {_points(difference)} | {_verdict(difference)} |"
        for before, difference in known
    ]
    heads = ["| task | pictures | change, points (95 %) | which |", "|---|---|---|---|"]
    return "\n".join([*heads, *lines]) if lines else ""


def _interval(score: Score) -> str:
    if not score.hits:
        return ""
    low, high = _ends(score)
    return f" ({low:.1f} to {high:.1f})"


def _ends(score: Score) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a score whose hits are known, in per cent."""
    found = proportion_interval(min(sum(score.hits), len(score.hits)), len(score.hits))
    return 100 * found.low, 100 * found.high


def _difference(before: Score, after: Score) -> PairedDifference | None:
    """Return what changed on the same pictures; None where these are not the same, or not known."""
    if not before.hits or len(before.hits) != len(after.hits):
        return None
    return paired_difference(before.hits, after.hits)


def _points(difference: PairedDifference) -> str:
    low, high = difference.interval.low, difference.interval.high
    return f"{100 * difference.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _verdict(difference: PairedDifference) -> str:
    """Return what the interval says, which stands beside it."""
    return "may be chance" if difference.interval.low <= 0 <= difference.interval.high else "is hardly chance"


def _how_sure(before: Score, after: Score) -> str:
    """Return in words what a change is worth; nothing where the pictures' outcomes are not known."""
    difference = _difference(before, after)
    if difference is None:
        return ""
    low, high = 100 * difference.interval.low, 100 * difference.interval.high
    return (
        f"; with 95 % confidence {low:+.1f} to {high:+.1f}, which on {difference.num_questions} pictures "
        f"{_verdict(difference)}"
    )


def summary(results: Results) -> str:
    """Return what fine-tuning gained and cost, in a sentence or two."""
    before, after = results.before, results.after
    gained = after.new.value - before.new.value
    sure = _how_sure(before.new, after.new)
    said = (
        f"Fine-tuning took the new task from {before.new.value:.1f} to {after.new.value:.1f} "
        f"({gained:+.1f} points{sure})"
    )
    if not before.old:
        return f"{said}. What it cost on old tasks is not known: name some with --old-tasks."
    lost = after.mean_old - before.mean_old
    said += f" and the old ones from {before.mean_old:.1f} to {after.mean_old:.1f} ({lost:+.1f})."
    between = results.rows[1:-1]
    if between:
        best = max(results.rows, key=lambda row: row.new.value + row.mean_old)
        said += (
            f" The best sum of both has alpha {best.alpha:g}: {best.new.value:.1f} and {best.mean_old:.1f}; chosen on "
            "these very pictures, so a little optimistic."
        )
    return said


def write_report(folder: Path, results: Results) -> None:
    """Write `results.json`, `report.md` and, where matplotlib is installed and there are old tasks, `tradeoff.png`."""
    text = f"# Fine-tuning\n\n{table(results.rows)}\n\nPer cent, with intervals of 95 %. {summary(results)}\n"
    if changes := differences(results):
        text += f"\nOriginal against fine-tuned, on the same pictures:\n\n{changes}\n"
    if results.before.old and _plot(results, folder / "tradeoff.png"):
        text += "\n![New task against old tasks, from the original to the fine-tuned model](tradeoff.png)\n"
    write_text(folder / "report.md", text)
    write_text(folder / "results.json", to_json(results, indent=1))


def _plot(results: Results, path: Path) -> bool:
    heads = [_head(row, f"{row.alpha:g}") for row in results.rows]
    old, new = [row.mean_old for row in results.rows], [row.new.value for row in results.rows]
    y_label = f"new task: {results.before.new.task}, {results.before.new.metric}, %"
    known = [_ends(row.new) for row in results.rows if row.new.hits]
    line = Line(x=old, y=new, marker="o", names=heads, bars=known if len(known) == len(new) else ())
    try:
        write_chart([Panel(lines=[line], x_label="old tasks, mean, %", y_label=y_label)], path, size=(5, 4))
    except ModuleNotFoundError as error:
        say(f"there is no tradeoff.png: {error}")
        return False
    return True


def _head(row: Scores, otherwise: str) -> str:
    return {0.0: "original", 1.0: "fine-tuned"}.get(row.alpha, otherwise)

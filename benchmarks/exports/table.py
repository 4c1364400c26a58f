"""The matrix as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.exports.results import Loss, Measured, Outcome

_COLUMNS = (
    "model",
    "target",
    "precision",
    "MB",
    "cosines, images and captions",
    "first results",
    "accuracy, and the difference",
    "ms, image and text",
    "gates",
)
_SHOWN = 160


def markdown(outcomes: Iterable[Outcome]) -> str:
    """Return the matrix as a table of Markdown, and what failed below it."""
    known = list(outcomes)
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS)), *(_row(_cells(one)) for one in known)]
    reasons = [f"- {one.cell}: {one.failure}" for one in known if one.failure is not None]
    return "\n".join([*lines, *(["", "What could not be measured:", "", *reasons] if reasons else []), ""])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(outcome: Outcome) -> Iterator[str]:
    cell, measured = outcome.cell, outcome.measured
    yield from (cell.model.rpartition("/")[2], cell.target, cell.precision)
    if measured is None:
        yield from ("", "", "", "", "", "failed")
        return
    yield f"{measured.megabytes:.1f}"
    yield ", ".join("not finite" if one is None else _cosine(one) for one in measured.cosines)
    yield f"{100 * measured.agreement:.1f} %"
    yield "" if measured.loss is None else _lost(measured.loss)
    yield f"{measured.image_ms:.2f}, {measured.text_ms:.2f}"
    yield _gates(measured)


def _cosine(value: float) -> str:
    """Return a cosine with as many digits as tell it from one."""
    return f"1 - {1 - value:.0e}" if value > 1 - 1e-5 else f"{value:.5f}"


def _lost(loss: Loss) -> str:
    difference = 100 * (loss.export - loss.model)
    noise = "" if loss.low is None or loss.high is None else f" ({100 * loss.low:+.2f} to {100 * loss.high:+.2f})"
    return f"{100 * loss.export:.2f} %, {difference:+.2f}{noise}"


def _gates(measured: Measured) -> str:
    kept = f", {measured.kept} layers wider" if measured.kept else ""
    failed = "; ".join(measured.failures)
    return f"failed: {failed[:_SHOWN]}{kept}" if failed else f"passed{kept}"

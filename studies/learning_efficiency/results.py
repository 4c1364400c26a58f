"""Finished trainings as lines of JSON: what an earlier run wrote is read, not done again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from mobileclip.serialization import from_json, to_json
from studies.learning_efficiency.scoring import Scores
from studies.learning_efficiency.spec import Cell

RESULTS = "results.jsonl"


@attrs.frozen(kw_only=True)
class Result:
    """One finished training.

    Args:
        study: see `EfficiencySpec.study`.
        cell: what was trained.
        scores: by the name of the held-out part.
        seconds: how long it took; less than the whole where it was resumed.
        processor_seconds: of its process, of which the same holds; none in lines of before they were counted.
    """

    study: str
    cell: Cell
    scores: Mapping[str, Scores]
    seconds: float
    processor_seconds: float | None = None


def append(path: Path, result: object) -> None:
    """Add a line, which is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_results(path: Path, *, study: str) -> dict[Cell, Result]:
    """Return the finished trainings; a last line that was cut off by a killed process is none.

    Args:
        path: the file, which need not exist.
        study: what they have to be of.

    Raises:
        ValueError: if one was made with other choices, or a line that is not the last cannot be read.
    """
    if not path.exists():
        return {}
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        # Without its end a line is not whole, and the next one would be appended to it.
        os.truncate(path, path.stat().st_size - len(rest.encode()))
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            result = from_json(line, Result)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no result of a training: {error}") from None
        if result.study != study:
            raise ValueError(
                f"{path} holds trainings of a study with other choices (line {number}: {result.study}, not {study}); "
                "move it away or give --output. Only --parts, --num-seeds, --budgets, --shares and --num-processes may "
                "change"
            )
        found[result.cell] = result
    return found

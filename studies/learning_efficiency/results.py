"""Stores finished trainings as lines of JSON, so that later runs do not repeat them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

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
        cell: the training.
        scores: scores by the name of the held-out part.
        seconds: duration; less than the total for a resumed training.
        processor_seconds: processor time of the process, with the same restriction; missing in old lines.
    """

    study: str
    cell: Cell
    scores: Mapping[str, Scores]
    seconds: float
    processor_seconds: float | None = None


class _Kept(Protocol):
    @property
    def study(self) -> str: ...


Kept = TypeVar("Kept", bound=_Kept)


def append(path: Path, result: object) -> None:
    """Add a line, and wait until the line is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, kind: type[Kept], *, study: str = "") -> list[Kept]:
    """Return the lines of a file, which need not exist, without a last line cut off by a killed process.

    Raises:
        ValueError: if a line is from a study with other settings than `study`, or a line before the last is invalid.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        # Without its end a line is not whole, and the next one would be appended to it.
        os.truncate(path, path.stat().st_size - len(rest.encode()))
    try:
        found = [from_json(line, kind) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} holds a line that is not a result of a training: {error}") from None
    if study and (other := next((one.study for one in found if one.study != study), None)):
        raise ValueError(
            f"{path} holds a study with other settings ({other}, not {study}); move it away or give another --output"
        )
    return found


def read_results(path: Path, *, study: str) -> dict[Cell, Result]:
    """Return the finished trainings; see `read_lines`."""
    return {one.cell: one for one in read_lines(path, Result, study=study)}

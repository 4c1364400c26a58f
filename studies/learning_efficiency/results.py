"""Finished trainings as lines of JSON: what an earlier run wrote is read, not done again."""

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


class _Kept(Protocol):
    @property
    def study(self) -> str: ...


Kept = TypeVar("Kept", bound=_Kept)


def append(path: Path, result: object) -> None:
    """Add a line, which is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(result) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, kind: type[Kept], *, study: str = "") -> list[Kept]:
    """Return the lines of a file, which need not exist; a last one that was cut off by a killed process is none.

    Raises:
        ValueError: if one is of a study with other choices than `study`, or a line that is not the last cannot be read.
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
        raise ValueError(f"{path} holds a line that is no result of a training: {error}") from None
    if study and (other := next((one.study for one in found if one.study != study), None)):
        raise ValueError(
            f"{path} holds a study with other choices ({other}, not {study}); move it away or give another --output"
        )
    return found


def read_results(path: Path, *, study: str) -> dict[Cell, Result]:
    """Return the finished trainings; see `read_lines`."""
    return {one.cell: one for one in read_lines(path, Result, study=study)}

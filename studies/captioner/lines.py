"""Lines of results, which a killed study keeps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from mobileclip.serialization import from_json

LINES = "lines.jsonl"


@attrs.frozen(kw_only=True)
class Line:
    """What is known of an arm: its captions, or one student.

    Args:
        study: see `CaptionerStudySpec.study`.
        arm: by name.
        kind: `captions` or `student`.
        values: numbers by name, shares in per cent; of students top-5 by part of the held-out drawings.
        seconds: how long it took, by the clock.
        budget: steps of the student.
        seed: of the student.
        processor_seconds: of the process.
    """

    study: str
    arm: str
    kind: Literal["captions", "student"]
    values: Mapping[str, float]
    seconds: float
    budget: int = 0
    seed: int = 0
    processor_seconds: float | None = None


def read_lines(path: Path, *, study: str = "") -> list[Line]:
    """Return the whole lines of a file, which need not exist.

    Raises:
        ValueError: if one is of a study with other choices than `study`, or cannot be read.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        os.truncate(path, path.stat().st_size - len(rest.encode()))
    found = [from_json(line, Line) for line in lines]
    if study and (other := next((one.study for one in found if one.study != study), None)):
        raise ValueError(f"{path} holds a study with other choices ({other}, not {study}); give another --output")
    return found

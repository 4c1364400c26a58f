"""What a run has found out so far: a line of JSON for each data set, with what it depended on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.evaluation.results import DatasetResult, read_results
from mobileclip.evaluation.tasks.task import Evaluation
from mobileclip.strict import split_lines

_FIELDS = ("left_out", "absent_classes", "evaluated", "interval")
# Holding it takes milliseconds.
_WAIT_SECONDS = 120.0


@attrs.frozen(kw_only=True)
class Record:
    """A result, and what it depended on.

    Args:
        result: the metrics.
        left_out: how many samples could not be used, by reason.
        absent_classes: names of classes without an image.
        evaluated: hashes of the model and of the data, when, and by which version.
        interval: where the true main metric lies with 95 % confidence, as fractions of one; None in a file of
            before it was taken.
    """

    result: DatasetResult
    left_out: Mapping[str, int]
    absent_classes: tuple[str, ...]
    evaluated: Mapping[str, str]
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, evaluation: Evaluation, evaluated: Mapping[str, str]) -> Record:
        """Return the record of an evaluation."""
        found = evaluation.outcomes.interval
        return cls(
            result=evaluation.result,
            left_out=dict(evaluation.report.counts.most_common()),
            absent_classes=evaluation.absent_classes,
            evaluated=evaluated,
            interval=(found.low, found.high),
        )

    def answers(self, model: str, data: str) -> bool:
        """Return whether it is of this very model and these very data."""
        return (self.evaluated.get("model"), self.evaluated.get("data")) == (model, data)


def read_records(path: Path) -> dict[str, Record]:
    """Return the records in a file by key; none where there is no file.

    Raises:
        ValueError: if a line is malformed; see `read_results`.
    """
    if not path.exists():
        return {}
    more: dict[str, dict[str, Any]] = {}
    results = read_results(path)
    for line in split_lines(path.read_text(encoding="utf-8")):
        if line.strip():
            values = json.loads(line)
            more[values["key"]] = {name: values.get(name) for name in _FIELDS}
    return {
        key: Record(
            result=result,
            left_out=more[key]["left_out"] or {},
            absent_classes=tuple(more[key]["absent_classes"] or ()),
            evaluated=more[key]["evaluated"] or {},
            interval=tuple(more[key]["interval"]) if more[key]["interval"] else None,
        )
        for key, result in results.items()
    }


def add_record(path: Path, record: Record) -> None:
    """Put a record beside those that are there, whoever else does so at the same time.

    Raises:
        OSError: if it cannot be written; the file before is then still there.
        ValueError: if the file cannot be read, or others hold it for minutes.
    """
    with storage.exclusive(path.parent, wait_seconds=_WAIT_SECONDS):
        records = {**read_records(path), record.result.key: record}
        lines = []
        for one in records.values():
            values = {name: value for name, value in attrs.asdict(one.result).items() if value is not None}
            values |= {name: getattr(one, name) for name in _FIELDS}
            lines.append(json.dumps(values, ensure_ascii=False))
        storage.write_text(path, "".join(f"{line}\n" for line in lines))

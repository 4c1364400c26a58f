"""The results of a run as JSON lines, one for each data set and reading, written as they are found.

No run reads its numbers back: it computes them of the features that are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.tasks.task import Evaluation
from mobileclip.strict import parse_json, split_lines

# Holding it takes milliseconds.
_WAIT_SECONDS = 120.0


@attrs.frozen(kw_only=True)
class Record:
    """A line of `results.jsonl`: a result with the model and the reading that it is of.

    Args:
        result: the metrics.
        left_out: how many samples could not be used, by reason.
        absent_classes: names of classes without an image.
        reading: how pictures and texts were read: size, filter, context length, precision, and a hash of the templates.
        evaluated: hashes of the model and of the data, when its features were made, where, and by which version.
        interval: where the true main metric lies with 95 % confidence, as fractions of one.
    """

    result: DatasetResult
    left_out: Mapping[str, int]
    absent_classes: tuple[str, ...]
    reading: Mapping[str, Any]
    evaluated: Mapping[str, str]
    interval: tuple[float, float]

    @classmethod
    def of(cls, evaluation: Evaluation, *, reading: Mapping[str, Any], evaluated: Mapping[str, str]) -> Record:
        """Return the record of an evaluation."""
        found = evaluation.outcomes.interval
        return cls(
            result=evaluation.result,
            left_out=dict(evaluation.report.counts.most_common()),
            absent_classes=evaluation.absent_classes,
            reading=reading,
            evaluated=evaluated,
            interval=(found.low, found.high),
        )


def add_record(path: Path, record: Record, *, model: str) -> None:
    """Put a record at the end of a file, also while other processes do; it replaces one of the same reading.

    Args:
        path: the file of one model's weights; see `read_results`.
        record: of one data set.
        model: what tables call it.

    Raises:
        OSError: if it cannot be written; the file before is then still there.
        ValueError: if a line is no JSON, or others hold the file for minutes.
    """
    values = {name: value for name, value in attrs.asdict(record.result).items() if value is not None}
    values |= {
        name: getattr(record, name) for name in ("left_out", "absent_classes", "reading", "evaluated", "interval")
    }
    # As CLIP_benchmark names them, whose tables can so be made of lines of ours.
    values |= {"model": model, "pretrained": record.evaluated["weights_sha256"]}
    with storage.exclusive(path.parent, wait_seconds=_WAIT_SECONDS):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = [line for line in split_lines(text) if line.strip() and not _is_replaced(parse_json(line), record)]
        storage.write_text(path, "".join(f"{line}\n" for line in (*kept, json.dumps(values, ensure_ascii=False))))


def _is_replaced(line: Any, record: Record) -> bool:
    """Return whether a line is of the same data set and reading; those of before readings were written are."""
    if not isinstance(line, dict):
        raise ValueError(f"a line is {str(line)[:60]!r}, expected an object with key, dataset and metrics")
    return bool(line.get("key") == record.result.key and line.get("reading", record.reading) == record.reading)

"""Sources are read as a worker reads them."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobileclip.data import ImageTextSample, SkipReport
from mobileclip.datasets import Source
from tests.data.made_samples import encoded

JPEG, PNG, WEBP = (encoded(8, 6, kind=kind) for kind in ("jpeg", "png", "webp"))

KEYS = [f"00010000000{number}" for number in range(3)]


def read(source: Source) -> tuple[list[ImageTextSample], SkipReport]:
    """Read all units as a worker would, after a pickle's journey."""
    report = SkipReport(log=False)
    samples = [sample for unit in pickle.loads(pickle.dumps(source.units())) for sample in unit.read(report)]
    assert report.num_read == len(samples)
    return samples, report


def names(report: SkipReport) -> dict[str, list[str]]:
    return {reason: [skip.key for skip in skips] for reason, skips in report.named.items()}


def write_lines(path: Path, lines: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, object]], **options: Any) -> Path:
    """Write rows as what the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, **options)
        return path
    text = io.StringIO()
    if path.suffix == ".csv":
        writer = csv.writer(text)
    else:
        writer = csv.writer(text, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path

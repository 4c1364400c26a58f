"""Sources are read as a worker reads them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

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

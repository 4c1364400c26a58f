"""Sources are read as a worker reads them."""

import csv
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from mobileclip import storage
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


def found(source: Source, *fields: str) -> tuple[list[Any], dict[str, list[str]]]:
    """Return fields of all samples, and the names of what is left out, by reason."""
    samples, report = read(source)
    return list(map(attrgetter(*fields), samples)), names(report)


def pictures(folder: Path, count: int = 3) -> list[bytes]:
    """Write images, and return their contents."""
    images = [encoded(8, 6, seed=number) for number in range(count)]
    plant(folder, {f"{number}.png": image for number, image in enumerate(images)})
    return images


def copy_to_store(folder: Path, address: str) -> None:
    for name in storage.find_files(folder):
        with storage.atomic_write(f"{address}/{name}") as stream:
            stream.write((folder / name).read_bytes())


def plant(folder: Path, files: Mapping[str, object]) -> Path:
    """Write files: bytes, text, or what becomes JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (bytes, str)) else json.dumps(content)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def write_lines(path: Path, lines: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in written))
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, object]], **options: Any) -> Path:
    """Write rows as what the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, **options)
        return path
    choices = {} if path.suffix == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    text = io.StringIO()
    csv.writer(text, **choices).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path

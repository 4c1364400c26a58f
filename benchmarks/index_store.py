"""What the store of an index costs: opened, searched with conditions, changed and merged, without any model.

Command:   python -m benchmarks index_store
Hardware:  any CPU with nothing else to do; one thread
Time:      half a minute on one core, and 2 GB of memory
Result:    processor time of each, and the bytes of a row beside its embedding
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
from attrs import validators

from benchmarks.harness import Bench, Case, Row as Measured, Value
from mobileclip.collections import parse_condition
from mobileclip.collections.conditions import matching
from mobileclip.collections.nearest import nearest_of
from mobileclip.collections.about import About
from mobileclip.collections.store import Row
from mobileclip.collections import Store
from mobileclip.collections.merge import merge_stores
from mobileclip.collections.snapshot import take_snapshot

_BLOCK = 4096
_CONDITIONS = {"a number": "width>5500", "a date": "taken<=2012-06-01", "a text": "path~holiday 3"}


@attrs.frozen(kw_only=True)
class IndexStoreBenchSpec(Bench):
    """What is measured.

    Args:
        num_rows: pictures in the index.
        dim: numbers in an embedding.
    """

    num_rows: int = attrs.field(default=250_000, validator=validators.ge(2000))
    dim: int = attrs.field(default=512, validator=validators.gt(0))
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {"num_rows": 5000, "dim": 8}

    def cases(self) -> Iterator[Case]:
        """Yield all of it."""
        yield Case(labels={"rows": f"{self.num_rows:,}"}, measure=partial(measure, self))


def measure(spec: IndexStoreBenchSpec) -> Iterator[Measured]:
    """Yield the processor time of each piece of work, and then what a row takes on the disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, milliseconds in _costs(spec, folder).items():
            yield Measured(case={"work": what}, values={"processor": Value(number=milliseconds, unit="ms")})
        size = (folder / "index" / "index.sqlite").stat().st_size / spec.num_rows
        yield Measured(case={"work": "a row beside its embedding"}, values={"disk": Value(number=size, unit="B")})


def _costs(spec: IndexStoreBenchSpec, folder: Path) -> dict[str, float]:
    """Return the processor time of each piece of work in milliseconds."""
    costs: dict[str, float] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = work()
        costs[what] = 1000 * (time.process_time() - start)
        return found

    about = About(weights_sha256="0" * 64, spec="{}", version="1", dim=spec.dim)
    index, other = Store.create(folder / "index", about), Store.create(folder / "other", about)
    with index.writing():
        timed("write all rows", lambda: index.append(_rows(spec.num_rows, spec.dim)))
    snapshot = timed("open", lambda: take_snapshot(Store.open(index.folder)))
    query = snapshot.vectors[0].astype(np.float32)
    timed("search", lambda: nearest_of(snapshot.vectors, None, query, 10))
    for time_of in ("the first time", "again"):
        for name, condition in _CONDITIONS.items():
            where = [parse_condition(condition)]
            search = lambda: nearest_of(snapshot.vectors, matching(snapshot, where), query, 10)  # noqa: B023, E731
            timed(f"search with {name}, {time_of}", search)
    with index.writing():
        ids = snapshot.ids[100:1100].tolist()
        timed("replace 1,000 rows", lambda: index.append(_rows(1000, spec.dim), removed=ids))
        timed("compact", index.compact)
    with other.writing():
        timed("merge", lambda: merge_stores(other, [index], show_progress=False))
    return costs


def _rows(count: int, dim: int) -> Iterator[Row]:
    draw = np.random.default_rng(0)
    for start in range(0, count, _BLOCK):
        vectors = draw.standard_normal((min(_BLOCK, count - start), dim), dtype=np.float32)
        for number, vector in enumerate(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), start):
            yield Row(
                path=f"/home/someone/photos/2021/holiday {number // 500}/IMG_{number:08d}_{count}.jpg",
                size=2_000_000 + number,
                mtime_ns=10**18 + number,
                sha256=hashlib.sha256(f"{count} {number}".encode()).hexdigest(),
                width=1000 + number % 5000,
                height=800 + number % 100,
                camera="A camera of theirs",
                taken=f"20{10 + number % 14}-{1 + number % 12:02d}-{1 + number % 28:02d}T12:30:00",
                latitude=48.5 + number % 10,
                longitude=7.25,
                embedding=vector,
            )

"""What an index holds in memory, and what it finds, with embeddings in 16, 8, 4 bits and 1: a fresh process searches.

Command:   python -m benchmarks small_vectors [--num-vectors 10000000 --kinds bits --folder BIG]
Hardware:  any CPU; one thread. Ten million vectors take 15 GB of disk
Time:      ten minutes on one core; an hour for ten million
Result:    bytes of a vector in memory, the share of the ten nearest that is found, milliseconds of processor time of a
           query, and the peak memory of the process that searches

Vectors are drawn from a normal distribution whose variances fall as `i ** -spectrum` along 512 dims, and scaled to unit
length: with 0.7, of an effective rank of 130, and without clusters, which is harder than photographs. They go into an
index by the code of the library, are coded by it, and it measures the recall itself, with 200 of them on which codes
were not fitted. Embeddings stay on the disk, and those of the shortlist are read from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import torch
from attrs import validators
from numpy.typing import NDArray

from benchmarks.harness import Bench, Case, Row as Measured, Value, peak, seconds_of, spread, start_peak
from benchmarks.harness.apart import in_own_process
from mobileclip.collections import Collection
from mobileclip.collections.searching import nearest_of
from mobileclip.collections.store import About, Row, Store
from mobileclip.inputs import VectorKind
from mobileclip.progress import Progress
from mobileclip.terminal import console

_DRAWN = 65_536


@attrs.frozen(kw_only=True)
class SmallVectorsSpec(Bench):
    """What is measured.

    Args:
        num_vectors: in the index.
        dim: numbers of each.
        spectrum: how fast variances fall.
        kinds: how they are held in memory, one after another.
        num_queries: that are timed.
        folder: where the index is made, and stays; gone on with if it is there. None for one that goes.
        seed: of all that is drawn.
    """

    num_vectors: int = attrs.field(default=1_000_000, validator=validators.gt(1))
    dim: int = attrs.field(default=512, validator=validators.gt(0))
    spectrum: float = 0.7
    kinds: tuple[VectorKind, ...] = ("float16", "int8", "int4", "bits")
    num_queries: int = attrs.field(default=20, validator=validators.gt(0))
    folder: Path | None = None
    seed: int = 0
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {"num_vectors": 3000, "dim": 32, "num_queries": 3}

    def cases(self) -> Iterator[Case]:
        """Yield all kinds of one index."""
        yield Case(labels={"vectors": f"{self.num_vectors:,}"}, measure=partial(measure, self))


def draw(spec: SmallVectorsSpec, count: int, part: int) -> NDArray[np.float16]:
    """Return vectors of unit length: always the same ones of a part."""
    rows = np.random.default_rng((spec.seed, part)).standard_normal((count, spec.dim), dtype=np.float32)
    rows *= np.arange(1, spec.dim + 1, dtype=np.float32) ** (-spec.spectrum / 2)
    unit: NDArray[np.float16] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return unit


def fill(folder: Path, spec: SmallVectorsSpec) -> None:
    """Write an index of as many vectors as are asked for, or the rest of it."""
    about = About(weights_sha256="0" * 64, spec="{}", version="1", dim=spec.dim)
    store = Store.open(folder) if folder.exists() else Store.create(folder, about)
    with store.writing(), _bar(spec) as bar:
        bar.advance(len(store.vectors()[1]))
        while bar.done < spec.num_vectors:
            first = bar.done
            vectors = draw(spec, min(_DRAWN, spec.num_vectors - first), first // _DRAWN)
            store.append(
                Row(path=f"/{number}.jpg", size=1, mtime_ns=1, sha256=f"{number:x}", embedding=vector)
                for number, vector in enumerate(vectors, start=first)
            )
            bar.advance(len(vectors))


def _bar(spec: SmallVectorsSpec) -> Progress:
    return Progress("drawing", total=spec.num_vectors, unit="vectors", console=console(shown=True))


def search(folder: Path, spec: SmallVectorsSpec) -> tuple[list[float], float]:
    """Return the milliseconds of each query, and the peak memory of this process in bytes, its programs included."""
    torch.set_num_threads(1)
    start_peak("cpu")
    collection = Collection.open(folder)
    # Of other numbers than all of those of the index.
    queries = draw(spec, 1 + spec.num_queries, 2**20).astype(np.float32)
    snapshot, scan = collection.snapshot, collection.graphs

    def nearest(query: NDArray[np.float32]) -> None:
        found = nearest_of(snapshot.vectors, None, query, 10) if scan is None else scan.nearest(query, 10)
        snapshot.rows(found[0])

    milliseconds = [1000 * seconds_of(partial(nearest, query)).cpu for query in queries]
    return milliseconds[1:], peak("cpu")


def measure(spec: SmallVectorsSpec) -> Iterator[Measured]:
    """Yield what each kind takes and finds."""
    with tempfile.TemporaryDirectory() as name:
        folder = spec.folder or Path(name) / "index"
        fill(folder, spec)
        for kind in spec.kinds:
            recall, num_bytes = 1.0, 2 * spec.dim
            # Graphs are not what is compared here: all embeddings are.
            if kind != "float16" and (found := Collection.open(folder).use_vectors(kind)) is not None:
                recall, num_bytes = found.recall, found.num_bytes
            times, most = in_own_process(search, folder, spec)
            yield Measured(
                case={"kind": kind},
                values={
                    "a vector in memory": Value(number=num_bytes, unit="B"),
                    "recall@10": Value(number=recall),
                    "a query": spread(times, "ms"),
                    "peak memory": Value(number=most / 1e9, unit="GB"),
                },
            )

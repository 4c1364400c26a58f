"""What an index holds in memory, and what it finds, with embeddings in 16, 8, 4 bits and 1: a fresh process searches.

Command:   python -m benchmarks small_vectors [--num-vectors 10000000 --kinds bits --folder BIG]
Hardware:  any CPU; one thread. Ten million vectors take 15 GB of disk
Time:      twenty minutes on one core, of which graphs take ten; an hour for ten million
Result:    bytes of a vector in memory with all that is kept beside it, the share of the ten nearest that is found,
           milliseconds of processor time of a query, their part of those of float16 with graphs for the same query at
           the same time, and the peak memory of the process that searches

Vectors are drawn from a normal distribution whose variances fall as `i ** -spectrum` along 512 dims, and scaled to unit
length: with 0.7, of an effective rank of 130, and without clusters, which is harder than photographs. They go into an
index by the code of the library, and are coded by it. Queries are further vectors; what they were to find, all
embeddings say. Embeddings stay on the disk, and those of the shortlist are read from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
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
from mobileclip.collections.UNKNOWN import GRAPHS, least_scores, renew_graphs
from mobileclip.collections.nearest import nearest_of
from mobileclip.collections.about import About
from mobileclip.collections.store import Row
from mobileclip.collections import Store
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
        num_queries: that are timed, and of which the recall is.
        folder: where the index is made, and stays; gone on with if it is there. The default's graphs are in another
            beside it. None for one that goes.
        seed: of all that is drawn.
    """

    num_vectors: int = attrs.field(default=1_000_000, validator=validators.gt(1))
    dim: int = attrs.field(default=512, validator=validators.gt(0))
    spectrum: float = 0.7
    kinds: tuple[VectorKind, ...] = ("float16", "int8", "int4", "bits")
    num_queries: int = attrs.field(default=100, validator=validators.gt(0))
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


def search(folder: Path, beside: Path | None, spec: SmallVectorsSpec) -> tuple[list[float], list[float], float, float]:
    """Return milliseconds of queries, their part of another index's time, this one's peak memory and recall.

    The memory is in bytes, with all programs of this process. Each query is asked of both indexes, one after the other.
    """
    torch.set_num_threads(1)
    start_peak("cpu")
    # Of other numbers than all of those of the index.
    queries = draw(spec, 1 + spec.num_queries, 2**20).astype(np.float32)
    ask = _asking(folder)
    scores = [ask(query) for query in queries]
    most = peak("cpu")
    other = ask if beside is None else _asking(beside)
    other(queries[0])
    pairs = [[1000 * seconds_of(partial(one, query)).cpu for one in (ask, other)] for query in queries[1:]]
    least = least_scores(Collection.open(folder).snapshot.vectors, queries, 10, show_progress=False)
    # Sums of the same products differ by less.
    recall = float(np.mean(np.stack(scores) >= least[:, None] - 1e-5))
    return [one for one, _ in pairs], [one / another for one, another in pairs], most, recall


def _asking(folder: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a search for the ten nearest and their rows, with graphs or codes; it returns their scores."""
    collection = Collection.open(folder)
    snapshot, graphs = collection.snapshot, collection.graphs

    def ask(query: NDArray[np.float32]) -> NDArray[np.float32]:
        found, scores = nearest_of(snapshot.vectors, None, query, 10) if graphs is None else graphs.nearest(query, 10)
        snapshot.rows(found)
        return scores

    return ask


def measure(spec: SmallVectorsSpec) -> Iterator[Measured]:
    """Yield what each kind takes and finds; the default, with its graphs, is in an index of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = spec.folder or Path(name) / "index"
        fill(folder, spec)
        beside = folder.with_name(f"{folder.name}-float16") if "float16" in spec.kinds else None
        if beside is not None:
            plain = Collection.open(beside) if beside.exists() else Collection.create_copy(beside, _open(folder))
            renew_graphs(beside, plain.snapshot)
        for kind in spec.kinds:
            num_bytes, place = 2 * spec.dim, folder
            if kind == "float16":
                assert beside is not None, "it was just made"
                place = beside
                num_bytes += sum(path.stat().st_size for path in beside.glob(GRAPHS)) // spec.num_vectors
            elif (found := Collection.open(folder).use_vectors(kind)) is not None:
                num_bytes = found.num_bytes
            times, parts, most, recall = in_own_process(search, place, beside, spec)
            yield Measured(
                case={"kind": kind},
                values={
                    "a vector in memory": Value(number=num_bytes, unit="B"),
                    "recall@10": Value(number=recall),
                    "a query": spread(times, "ms"),
                    "of float16's time": spread(parts),
                    "peak memory": Value(number=most / 1e9, unit="GB"),
                },
            )


def _open(folder: Path) -> Collection:
    """Return an index that is as it was filled."""
    collection = Collection.open(folder)
    collection.use_vectors("float16")
    return collection

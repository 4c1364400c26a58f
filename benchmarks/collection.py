"""Costs of indexing photographs, compared with decoding, encoding and `mobileclip embed`, and the time of a search.

Command:   python -m benchmarks collection
Hardware:  any otherwise idle CPU; the benchmark uses one core
Time:      ten minutes on one core, mostly for a neighbour graph
Result:    processor time to decode, encode, embed and index a photograph of 3 megapixels; milliseconds of a search
           among random vectors, exact and with a graph, and the graph's recall; seconds, disk size and memory of an
           index with as many rows for appending all rows, opening, the first search, filtering, merging, and adding one
           row
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal

import attrs
import numpy as np
import torch
from attrs import validators
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import Bench, Case, Row, Value, peak, seconds_of, spread, start_peak
from mobileclip.collections import (
    Collection,
    GraphSizes,
    IndexOptions,
    ModelSource,
    Store,
    parse_condition,
    scan,
)
from mobileclip.collections.conditions import matching
from mobileclip.collections.merge import merge_stores
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.nearest import exact_nearest, open_graph, update_graph
from mobileclip.collections.snapshot import Snapshot, take_snapshot
from mobileclip.collections.store import Row as StoredRow
from mobileclip.data.images.transform import load_image, read_tower_image
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import resolve_spec
from mobileclip.inference import select_backend
from mobileclip.inference.embedding import EmbeddingInputs, embed_inputs
from mobileclip.inference.loading import load

_QUALITY = 88
_NOISE = 4.0
_DIM = 512
# Numbers of vectors drawn, and of rows written, at once.
_DRAWN, _APPENDED = 100_000, 4096


@attrs.frozen(kw_only=True)
class CollectionBenchSpec(Bench):
    """Settings of the measurements.

    Args:
        part: part of the benchmark.
        model: model with the architecture for encoding; its weights are random, which takes the same time.
        num_pictures: number of photographs, cut from the photographs of the package.
        width: width of a photograph in pixels; the height is three quarters of the width.
        num_vectors: number of vectors to search.
        num_centres: number of cluster centres of the vectors, since vectors of photographs form clusters. Without
            clusters (0), the search is harder for a graph: vectors vary in every direction, in some directions more
            than in others.
        num_queries: number of timed searches.
        graph: minimum number of vectors for a graph, and the settings of the graph search.
        seed: seed of all random numbers.
    """

    part: Literal["all", "indexing", "search", "store"] = "all"
    model: str = "mobileclip_s0"
    num_pictures: int = attrs.field(default=240, validator=validators.gt(1))
    width: int = attrs.field(default=2048, validator=validators.ge(64))
    num_vectors: int = attrs.field(default=250_000, validator=validators.gt(0))
    num_centres: int = attrs.field(default=2000, validator=validators.ge(0))
    num_queries: int = attrs.field(default=50, validator=validators.gt(0))
    graph: GraphSizes = GraphSizes(exact=0)
    seed: int = 0
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {
        "num_pictures": 2,
        "width": 64,
        "num_vectors": 500,
        "num_centres": 20,
        "num_queries": 5,
        "graph": GraphSizes(exact=100),
    }
    selects: ClassVar[frozenset[str]] = frozenset(("part",))

    def cases(self) -> Iterator[Case]:
        """Yield the parts."""
        size = f"{self.num_vectors:,} vectors"
        if self.part in ("all", "indexing"):
            photo = f"{self.width} x {self.width * 3 // 4} pixels"
            yield Case(labels={"part": "a photograph", "size": photo}, measure=partial(costs, self))
        if self.part in ("all", "search"):
            yield Case(labels={"part": "a search", "size": size}, measure=partial(searches, self))
        if self.part in ("all", "store"):
            yield Case(labels={"part": "an index", "size": size}, measure=partial(rows_of, self))


def draw_photographs(folder: Path, spec: CollectionBenchSpec) -> list[Path]:
    """Write JPEGs with parts of photographs, enlarged and with camera noise."""
    draw = np.random.default_rng(spec.seed)
    sources = sorted(
        str(path)
        for path in (files("mobileclip.inference.comparison") / "pictures").iterdir()
        if path.name.endswith("jpg")
    )
    size = (spec.width, spec.width * 3 // 4)
    paths = []
    for number in range(spec.num_pictures):
        image = load_image(sources[number % len(sources)])
        side = int(min(image.size) * draw.uniform(0.6, 1.0))
        left, top = (int(draw.integers(0, whole - side + 1)) for whole in image.size)
        whole = image.resize(size, Image.Resampling.BICUBIC, (left, top, left + side, top + side * 3 // 4))
        grain = draw.normal(0, _NOISE, (size[1], size[0], 1))
        path = folder / f"{number:05d}.jpg"
        pixels = (np.asarray(whole) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=_QUALITY)
        paths.append(path)
    return paths


def measure_indexing(folder: Path, spec: CollectionBenchSpec) -> dict[str, float]:
    """Return milliseconds of processor time per photograph, by operation."""
    model = resolve_spec(spec.model)
    (folder / "photos").mkdir()
    checkpoint = folder / "model.safetensors"
    torch.manual_seed(spec.seed)
    save_model(model.build(), checkpoint)
    paths = draw_photographs(folder / "photos", spec)
    clip = load(None, checkpoint, identify=True)
    identity = clip.identity
    assert identity is not None, "it was asked for"
    contents = [path.read_bytes() for path in paths]
    pixels: list[NDArray[np.uint8]] = []
    found = scan([str(folder / "photos")])
    options = IndexOptions(show_progress=False)
    fast = select_backend(clip, map(Path, found.files), len(paths), precision=options.precision, show_progress=False)
    collection = Collection.create(folder / "index", ModelSource(checkpoint=str(checkpoint)))

    def decode() -> None:
        pixels.extend(
            read_tower_image(data, clip.transform, reduced=True, name="a photograph").pixels for data in contents
        )

    def encode() -> None:
        for start in range(0, len(pixels), options.batch_size):
            fast.encode_pixels(torch.from_numpy(np.stack(pixels[start : start + options.batch_size])))

    ways: dict[str, Callable[[], object]] = {
        "decode": decode,
        "encode": encode,
        "index": lambda: collection.add_found(found, options),
        "embed": lambda: embed_inputs(clip, identity, EmbeddingInputs(paths=tuple(paths))),
    }
    return {name: 1000 * seconds_of(way).cpu / len(paths) for name, way in ways.items()}


def measure_search(folder: Path, spec: CollectionBenchSpec) -> dict[str, Value]:
    """Return the milliseconds of a search for ten images, the graph's recall, and the seconds to make the graph."""
    draw = np.random.default_rng(spec.seed)
    vectors = draw_vectors(draw, spec)
    snapshot = Snapshot(vectors=vectors, ids=np.arange(len(vectors)))
    chosen = vectors[draw.integers(0, len(vectors), spec.num_queries)].astype(np.float32)
    queries = unit_rows(chosen + 0.02 * draw.standard_normal(chosen.shape, dtype=np.float32))
    made = seconds_of(lambda: update_graph(folder, snapshot, spec.graph))
    before = start_peak("cpu")
    graph = open_graph(folder, snapshot, spec.graph)
    values = {
        "making the graph": Value(number=made.cpu, unit="s"),
        "the graph, opened": Value(number=(peak("cpu") - before) / 1e9, unit="GB"),
        "the vectors": Value(number=vectors.nbytes / 1e9, unit="GB"),
    }
    exact, values["all compared"] = _searched(
        lambda query: exact_nearest(snapshot.vectors, None, query, 10)[0], queries
    )
    if graph is not None:
        proposed, values["by the graph"] = _searched(lambda query: graph.nearest(query, 10)[0], queries)
        hits = sum(len(set(one) & set(other)) for one, other in zip(exact, proposed, strict=True))
        values["recall of the graph"] = Value(number=hits / sum(map(len, exact)))
    return values


def measure_store(folder: Path, spec: CollectionBenchSpec) -> dict[str, Value]:
    """Return processor seconds, disk size and memory of an index with `num_vectors` rows."""
    vectors = draw_vectors(np.random.default_rng(spec.seed), spec)
    about = IndexMetadata(weights_sha256="0" * 64, spec="{}", version="1", dim=_DIM)
    store, joined = Store.create(folder / "index", about), Store.create(folder / "joined", about)

    def append() -> None:
        with store.writing():
            for start in range(0, len(vectors), _APPENDED):
                store.append(
                    _row(start + place, vector) for place, vector in enumerate(vectors[start : start + _APPENDED])
                )

    def add_one() -> None:
        with store.writing():
            store.append([_row(len(vectors), vectors[0])])
            store.compact()

    def merge() -> None:
        with joined.writing():
            merge_stores(joined, [store], show_progress=False)

    values = {"append all": Value(number=seconds_of(append).cpu, unit="s")}
    before = start_peak("cpu")
    found: list[Snapshot] = []
    values["open"] = Value(number=seconds_of(lambda: found.append(take_snapshot(store))).cpu, unit="s")
    values["opened"] = Value(number=(peak("cpu") - before) / 1e9, unit="GB")
    query, condition = vectors[0].astype(np.float32), [parse_condition("width>1000")]
    ways: dict[str, Callable[[], object]] = {
        "first search": lambda: exact_nearest(found[0].vectors, None, query, 10),
        "filter": lambda: matching(found[0], condition),
        "add one row": add_one,
        "merge": merge,
    }
    values |= {name: Value(number=seconds_of(way).cpu, unit="s") for name, way in ways.items()}
    size = sum(path.stat().st_size for path in store.folder.iterdir())
    return {**values, "disk": Value(number=size / 1e6, unit="MB")}


def _row(number: int, vector: NDArray[np.float16]) -> StoredRow:
    return StoredRow(
        path=f"/photos/{number // 1000}/{number:08d}.jpg",
        size=2_000_000 + number,
        mtime_ns=1_700_000_000_000_000_000 + number,
        sha256=f"{number:064x}",
        width=4000,
        height=3000,
        embedding=vector,
    )


def draw_vectors(draw: np.random.Generator, spec: CollectionBenchSpec) -> NDArray[np.float16]:
    """Return vectors of unit length, around centres if there are any."""
    centres = draw.standard_normal((spec.num_centres, _DIM), dtype=np.float32)
    # Approximately as the lengths of principal components decrease.
    widths = 1 if spec.num_centres else np.arange(1, _DIM + 1, dtype=np.float32) ** -0.5
    vectors = np.empty((spec.num_vectors, _DIM), np.float16)
    for start in range(0, len(vectors), _DRAWN):
        part = vectors[start : start + _DRAWN]
        rows = draw.standard_normal(part.shape, dtype=np.float32) * widths
        if spec.num_centres:
            rows += centres[draw.integers(0, spec.num_centres, len(part))]
        part[:] = unit_rows(rows)
    return vectors


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows, each divided by its norm."""
    lengths: NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def _searched(
    search: Callable[[NDArray[np.float32]], NDArray[np.int64]], queries: NDArray[np.float32]
) -> tuple[list[list[int]], Value]:
    """Return the results of each query, and the milliseconds of processor time."""
    found: list[list[int]] = []
    seconds = [seconds_of(lambda query=query: found.append(search(query).tolist())).cpu for query in queries]  # type: ignore[misc]
    return found, spread([1000 * one for one in seconds], "ms")


def costs(spec: CollectionBenchSpec) -> list[Row]:
    """Return the costs per photograph by operation, and the ratio of indexing to decoding plus encoding."""
    with tempfile.TemporaryDirectory() as name:
        found = measure_indexing(Path(name), spec)
    values = {way: Value(number=one, unit="ms") for way, one in found.items()}
    values["index over its parts"] = Value(number=found["index"] / (found["decode"] + found["encode"]))
    values["embed over index"] = Value(number=found["embed"] / found["index"])
    return [Row(values=values)]


def searches(spec: CollectionBenchSpec) -> list[Row]:
    """Return the costs of a search."""
    with tempfile.TemporaryDirectory() as name:
        return [Row(values=measure_search(Path(name), spec))]


def rows_of(spec: CollectionBenchSpec) -> list[Row]:
    """Return the costs of an index."""
    with tempfile.TemporaryDirectory() as name:
        return [Row(values=measure_store(Path(name), spec))]

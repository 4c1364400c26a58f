"""What indexing photographs costs, beside its two parts and beside `mobileclip embed`, and how soon a search answers.

Command:   python -m benchmarks collection
Hardware:  any CPU with nothing else to do; one core is measured
Time:      ten minutes on one core, most of them for graphs of neighbours
Result:    processor time of a photograph of 3 megapixels, decoded and encoded alone, embedded and indexed; milliseconds
           of a search among random vectors, all compared and by graphs, and the recall of these
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
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections import scan
from mobileclip.collections import GraphSizes
from mobileclip.collections.UNKNOWN import NeighbourGraphs, open_graphs, renew_graphs
from mobileclip.collections.nearest import nearest_of
from mobileclip.collections.snapshot import Snapshot
from mobileclip.data.images.reading import read_tower_image
from mobileclip.data.images.transform import load_image
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import resolve_spec
from mobileclip.inference.embedding import EmbeddingInputs, embed_inputs
from mobileclip.inference.loading import load_identified
from mobileclip.inference.quickening import quickened

_QUALITY = 88
_NOISE = 4.0
_DIM = 512
# Vectors that are drawn at once.
_DRAWN = 100_000


@attrs.frozen(kw_only=True)
class CollectionBenchSpec(Bench):
    """What to measure.

    Args:
        part: what is measured.
        model: whose architecture encodes; its weights are random, which takes the same time.
        num_pictures: photographs, which are cut from those of the package.
        width: of a photograph in pixels; it is three quarters as high.
        num_vectors: that are searched.
        num_centres: that the vectors lie around, as those of photographs do. With 0, there are none, which is
            harder for a graph: vectors vary in every direction, in some more than in others.
        num_queries: searches that are timed.
        graphs: from how many vectors on they are made, and how large.
        seed: of all that is drawn.
    """

    part: Literal["all", "indexing", "search"] = "all"
    model: str = "mobileclip_s0"
    num_pictures: int = attrs.field(default=240, validator=validators.gt(1))
    width: int = attrs.field(default=2048, validator=validators.ge(64))
    num_vectors: int = attrs.field(default=250_000, validator=validators.gt(0))
    num_centres: int = attrs.field(default=2000, validator=validators.ge(0))
    num_queries: int = attrs.field(default=50, validator=validators.gt(0))
    graphs: GraphSizes = GraphSizes()
    seed: int = 0
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {
        "num_pictures": 2,
        "width": 64,
        "num_vectors": 500,
        "num_centres": 20,
        "num_queries": 5,
        "graphs": GraphSizes(exact=100),
    }
    selects: ClassVar[frozenset[str]] = frozenset(("part",))

    def cases(self) -> Iterator[Case]:
        """Yield both parts."""
        if self.part != "search":
            photo = f"{self.width} x {self.width * 3 // 4} pixels"
            yield Case(labels={"part": "a photograph", "size": photo}, measure=partial(costs, self))
        if self.part != "indexing":
            size = f"{self.num_vectors:,} vectors"
            yield Case(labels={"part": "a search", "size": size}, measure=partial(searches, self))


def draw_photographs(folder: Path, spec: CollectionBenchSpec) -> list[Path]:
    """Write JPEGs that are cut from photographs, enlarged, and given the grain of a camera."""
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
    """Return milliseconds of processor time that a photograph takes, by what is done with it."""
    model = resolve_spec(spec.model)
    (folder / "photos").mkdir()
    checkpoint = folder / "model.safetensors"
    torch.manual_seed(spec.seed)
    save_model(model.build(), checkpoint)
    paths = draw_photographs(folder / "photos", spec)
    clip, identity = load_identified(None, checkpoint)
    contents = [path.read_bytes() for path in paths]
    pixels: list[NDArray[np.uint8]] = []
    found = scan([str(folder / "photos")])
    options = IndexOptions(show_progress=False)
    fast = quickened(clip, map(Path, found.files), len(paths), precision=options.precision, show_progress=False)
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
    """Return milliseconds of a search for ten pictures, the graphs' recall, and the seconds that making them took."""
    draw = np.random.default_rng(spec.seed)
    vectors = draw_vectors(draw, spec)
    snapshot = Snapshot(vectors=vectors, ids=np.arange(len(vectors)))
    chosen = vectors[draw.integers(0, len(vectors), spec.num_queries)].astype(np.float32)
    queries = unit_rows(chosen + 0.02 * draw.standard_normal(chosen.shape, dtype=np.float32))
    made = seconds_of(lambda: renew_graphs(folder, snapshot, sizes=spec.graphs))
    before = start_peak("cpu")
    graphs = open_graphs(folder, snapshot, sizes=spec.graphs)
    values = {
        "making the graphs": Value(number=made.cpu, unit="s"),
        "the graphs, opened": Value(number=(peak("cpu") - before) / 1e9, unit="GB"),
        "the vectors": Value(number=vectors.nbytes / 1e9, unit="GB"),
    }
    exact, values["all compared"] = _searched(lambda query: nearest_of(snapshot.vectors, None, query, 10)[0], queries)
    if isinstance(graphs, NeighbourGraphs):
        by_graphs, values["by the graphs"] = _searched(lambda query: graphs.nearest(query, 10)[0], queries)
        hits = sum(len(set(one) & set(other)) for one, other in zip(exact, by_graphs, strict=True))
        values["recall of the graphs"] = Value(number=hits / sum(map(len, exact)))
    return values


def draw_vectors(draw: np.random.Generator, spec: CollectionBenchSpec) -> NDArray[np.float16]:
    """Return vectors of unit length around centres, or without any."""
    centres = draw.standard_normal((spec.num_centres, _DIM), dtype=np.float32)
    # As the lengths of principal components fall, about.
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
    """Return rows, each divided by its length."""
    lengths: NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def _searched(
    search: Callable[[NDArray[np.float32]], NDArray[np.int64]], queries: NDArray[np.float32]
) -> tuple[list[list[int]], Value]:
    """Return what each query finds, and the milliseconds of processor time."""
    found: list[list[int]] = []
    seconds = [seconds_of(lambda query=query: found.append(search(query).tolist())).cpu for query in queries]  # type: ignore[misc]
    return found, spread([1000 * one for one in seconds], "ms")


def costs(spec: CollectionBenchSpec) -> list[Row]:
    """Return what a photograph costs, by what is done with it, and indexing over its parts."""
    with tempfile.TemporaryDirectory() as name:
        found = measure_indexing(Path(name), spec)
    values = {way: Value(number=one, unit="ms") for way, one in found.items()}
    values["index over its parts"] = Value(number=found["index"] / (found["decode"] + found["encode"]))
    values["embed over index"] = Value(number=found["embed"] / found["index"])
    return [Row(values=values)]


def searches(spec: CollectionBenchSpec) -> list[Row]:
    """Return what a search takes."""
    with tempfile.TemporaryDirectory() as name:
        return [Row(values=measure_search(Path(name), spec))]

"""What indexing photographs costs, beside its two parts and beside `mobileclip embed`, and how soon a search answers.

Command:   python -m benchmarks.collection
Hardware:  any CPU with nothing else to do; one core is measured
Time:      ten minutes on one core, most of them for graphs of neighbours
Result:    processor time of a photograph of 3 megapixels, decoded and encoded alone, embedded and indexed; milliseconds
           of a search among random vectors, all compared and by graphs, and the recall of these
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Literal

import attrs
import numpy as np
import torch
from attrs import validators
from numpy.typing import NDArray
from PIL import Image

from benchmarks.command_line import empty_table, main
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections.reading.scanning import scan
from mobileclip.collections.searching import GraphSizes, NeighbourGraphs, nearest_of, open_graphs, renew_graphs
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.data.images.reading import read_tower_image
from mobileclip.data.images.transform import load_image
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import resolve_spec
from mobileclip.inference.embedding import EmbeddingInputs, embed_inputs
from mobileclip.inference.loading import load_identified
from mobileclip.inference.quickening import quickened
from mobileclip.terminal import print_table, say

_QUALITY = 88
_NOISE = 4.0
_DIM = 512
# Vectors that are drawn at once.
_DRAWN = 100_000


@attrs.frozen(kw_only=True)
class CollectionBenchSpec:
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
    return {name: 1000 * _processor_seconds(way) / len(paths) for name, way in ways.items()}


def measure_search(folder: Path, spec: CollectionBenchSpec) -> dict[str, float]:
    """Return milliseconds of a search for ten pictures, the graphs' recall, and the seconds that making them took."""
    draw = np.random.default_rng(spec.seed)
    vectors = draw_vectors(draw, spec)
    ids = np.arange(len(vectors))
    snapshot = Snapshot(vectors=vectors, ids=ids)
    chosen = vectors[draw.integers(0, len(vectors), spec.num_queries)].astype(np.float32)
    queries = unit_rows(chosen + 0.02 * draw.standard_normal(chosen.shape, dtype=np.float32))
    start = time.process_time()
    renew_graphs(folder, snapshot, sizes=spec.graphs)
    results = {"seconds of making the graphs": time.process_time() - start}
    before = _resident_bytes()
    graphs = open_graphs(folder, snapshot, sizes=spec.graphs)
    results["GB of the vectors"] = vectors.nbytes / 1e9
    results["GB of the graphs, opened"] = (_resident_bytes() - before) / 1e9
    exact, exact_ms = _searched(lambda query: nearest_of(snapshot.vectors, None, query, 10)[0], queries)
    results["ms, all compared"] = exact_ms
    if isinstance(graphs, NeighbourGraphs):
        by_graphs, graphs_ms = _searched(lambda query: graphs.nearest(query, 10)[0], queries)
        hits = sum(len(set(one) & set(other)) for one, other in zip(exact, by_graphs, strict=True))
        results |= {"ms, by the graphs": graphs_ms, "recall of the graphs": hits / sum(map(len, exact))}
    return results


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


def _resident_bytes() -> int:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _searched(
    search: Callable[[NDArray[np.float32]], NDArray[np.int64]], queries: NDArray[np.float32]
) -> tuple[list[list[int]], float]:
    """Return what each query finds, and the median of the milliseconds of processor time."""
    found, seconds = [], []
    for query in queries:
        start = time.process_time()
        found.append(search(query).tolist())
        seconds.append(time.process_time() - start)
    return found, 1000 * median(seconds)


def _processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def run(spec: CollectionBenchSpec) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if spec.part != "search":
            _print_costs(measure_indexing(Path(name), spec))
        if spec.part != "indexing":
            for what, value in measure_search(Path(name), spec).items():
                say(f"{what}: {value:.3g}")


def _print_costs(costs: dict[str, float]) -> None:
    table = empty_table(("a photograph", "ms of processor time"), texts=("a photograph",))
    for way, milliseconds in costs.items():
        table.add_row(way, f"{milliseconds:.1f}")
    print_table(table)
    say(f"index over its parts: {costs['index'] / (costs['decode'] + costs['encode']):.2f}")
    say(f"embed over index: {costs['embed'] / costs['index']:.2f}")


if __name__ == "__main__":
    main(CollectionBenchSpec, run, __doc__)

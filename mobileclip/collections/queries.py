"""Computes query embeddings, nearest images, and each image location's share of a score.

`mobileclip.collections.nearest` compares a query embedding with the embeddings of all images.

A test compares this ranking with the ranking in the browser, `examples/web/src/ranking.js`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.concepts import Cache, nearest_with_concepts
from mobileclip.collections.conditions import Condition, matching, parse_condition
from mobileclip.collections.images import read_encoded
from mobileclip.collections.nearest import NeighbourGraph, exact_nearest
from mobileclip.collections.scan import Presence
from mobileclip.collections.snapshot import Match, Snapshot, first_of_videos, hidden_error, match_of
from mobileclip.data import LIMITS, ImageError, Pixels, read_image_file, read_tower_image
from mobileclip.datasets import VideoFile
from mobileclip.inference import ImageTextModel, attribution

Vector = NDArray[np.float32]
QueryImage = str | Path | bytes

NEGATIVE_WEIGHT = 0.5
"""Weight of the mean excluded embedding in a query, relative to the mean wanted embedding."""
# If missing files, or frames of a few videos, fill the first places, the search is repeated with more results, by this
# factor.
_MORE = 8


class Matches(list[Match]):
    """Search results, nearest first.

    Args:
        found: matches, nearest first.
        is_exact: whether the search was exact; a graph may miss a few images.
    """

    def __init__(self, found: Iterable[Match] = (), *, is_exact: bool = True) -> None:
        super().__init__(found)
        self.is_exact = is_exact


def query_direction(
    clip: Callable[[], ImageTextModel],
    *,
    texts: Sequence[str],
    images: Sequence[QueryImage],
    known: Sequence[Vector],
    without: Sequence[str],
    reduced: bool,
) -> Vector:
    """Return the query embedding: the mean wanted embedding, minus half of the mean excluded embedding.

    Shape:
        (dim,), of unit length.

    Args:
        clip: function that returns the model of the index; `query_direction` calls the function only to encode texts
            or images.
        texts: query texts.
        images: example images, as paths or encoded bytes.
        known: stored embeddings of indexed example images, each of shape (dim,).
        without: texts to exclude.
        reduced: whether to decode a JPEG at reduced size, as for the index.

    Raises:
        ValueError: if the query is empty.
        ImageError: if an image cannot be read.
    """
    if not any(text.strip() for text in texts) and not images and not known:
        raise ValueError("the query is empty; expected a text or an image")
    wanted = [*_of_texts(clip, texts), *(embedding_of(clip(), one, reduced=reduced) for one in images), *known]
    query = np.asarray(np.mean(wanted, axis=0, dtype=np.float64))
    if without:
        query = query - NEGATIVE_WEIGHT * np.mean(_of_texts(clip, without), axis=0, dtype=np.float64)
    unit: Vector = (query / max(float(np.linalg.norm(query)), float(np.finfo(np.float32).tiny))).astype(np.float32)
    return unit


def nearest_matches(
    snapshot: Snapshot,
    graph: NeighbourGraph | None,
    query: Vector,
    k: int,
    *,
    where: Sequence[Condition | str],
    all_frames: bool,
    cache: Cache | None = None,
) -> Matches:
    """Return the images nearest to a query embedding, nearest first; skip missing files.

    Args:
        snapshot: snapshot of the index.
        graph: neighbour graph; None for exact search. Search with conditions or examples is always exact.
        query: query embedding, of shape (dim,).
        k: maximum number of results.
        where: conditions on columns, see `Condition`; results meet all conditions.
        all_frames: whether to return several frames of a video, instead of only the nearest frame.
        cache: embeddings and weights of the concepts' examples; None without examples.

    Raises:
        ValueError: if a condition is invalid, or all files of the index are missing.
        ReplacedIndexError: if another index has replaced this index since the snapshot.
    """
    conditions = [parse_condition(one) if isinstance(one, str) else one for one in where]
    indices = matching(snapshot, conditions) if conditions else None
    is_exact = cache is not None or indices is not None or graph is None
    wanted, there = k, Presence()
    while True:
        if cache is not None:
            found, scores = nearest_with_concepts(snapshot.vectors, indices, query, cache, wanted)
        elif indices is None and graph is not None:
            found, scores = graph.nearest(query, wanted)
        else:
            found, scores = exact_nearest(snapshot.vectors, indices, query, wanted)
        pairs = zip(snapshot.rows(found), scores.tolist(), strict=True)
        shown = [(row, score) for row, score in pairs if row is not None and row["path"] in there]
        chosen = range(len(shown)) if all_frames else first_of_videos([row for row, _ in shown])
        if len(found) and not shown and len(found) < wanted:
            raise hidden_error(len(found))
        if len(chosen) >= k or len(found) < wanted:
            return Matches((match_of(*shown[number]) for number in chosen[:k]), is_exact=is_exact)
        wanted *= _MORE


def newest_matches(snapshot: Snapshot, k: int, *, where: Sequence[Condition | str], all_frames: bool) -> Matches:
    """Return the images that meet conditions, newest first, by the date taken or else the modification time.

    Args:
        snapshot: snapshot of the index.
        k: maximum number of images; the score of every image is 0.
        where: conditions on columns, see `Condition`; results meet all conditions.
        all_frames: whether to return several frames of a video, instead of only one.

    Raises:
        ValueError: if a condition is invalid, or all files of the index are missing.
        ReplacedIndexError: if another index has replaced this index since the snapshot.
    """
    indices = matching(snapshot, [parse_condition(one) if isinstance(one, str) else one for one in where])
    taken, changed = snapshot.column("taken")[indices], snapshot.column("mtime_ns")[indices] / 1e9
    order = indices[np.argsort(-np.where(np.isnat(taken), changed, taken.astype(np.float64)), kind="stable")]
    there = Presence()
    rows: list[dict[str, Any]] = []
    chosen: Sequence[int] = ()
    for start in range(0, len(order), max(k, 1)):
        rows += [row for row in snapshot.rows(order[start : start + k]) if row is not None and row["path"] in there]
        chosen = range(len(rows)) if all_frames else first_of_videos(rows)
        if len(chosen) >= k:
            break
    if len(order) and not rows:
        raise hidden_error(len(order))
    return Matches(match_of(rows[number], 0.0) for number in chosen[:k])


def _of_texts(clip: Callable[[], ImageTextModel], texts: Sequence[str]) -> list[Vector]:
    return list(clip().encode_text(list(texts), keep=True).numpy()) if texts else []


def embedding_of(clip: ImageTextModel, image: QueryImage, *, reduced: bool) -> Vector:
    """Return the embedding of an image, decoded like the images of the index.

    Args:
        clip: model of the index.
        image: path of the image, or encoded bytes.
        reduced: whether to decode a JPEG at reduced size.

    Raises:
        ImageError: if the image cannot be read.
    """
    name = "the image" if isinstance(image, bytes) else f"image {str(image)!r}"
    data = image if isinstance(image, bytes) else read_image_file(storage.local_path(str(image)), LIMITS, name)
    pixels = read_tower_image(data, clip.transform, reduced=reduced, name=name).pixels
    embedding: Vector = clip.encode_pixels(torch.from_numpy(pixels)[None]).numpy()[0]
    return embedding


def similarity_map(
    clip: ImageTextModel, match: Match, direction: NDArray[np.float32], *, reduced: bool
) -> NDArray[np.float32]:
    """Return the share of each image location in the similarity with a query; the shares sum to the similarity.

    Shape:
        `(rows, columns)`, for the centre crop that the model receives.

    Args:
        clip: model of the index.
        match: match of the image; the function reads the image file again.
        direction: query embedding, of shape (dim,) and unit length.
        reduced: whether the index used decoding at reduced size.

    Raises:
        ValueError: if the model does not support explanations.
        ImageError: if the image cannot be read.
    """
    pixels = torch.from_numpy(_pixels_of(clip, match, reduced=reduced))
    shares = attribution(clip.local_embeddings(pixels[None]), torch.from_numpy(direction)[None])
    return np.asarray(shares[0, 0].numpy())


def _pixels_of(clip: ImageTextModel, match: Match, *, reduced: bool) -> Pixels:
    name = f"the image {match.name!r}"
    if match.time is not None:
        with VideoFile(Path(match.path), LIMITS, "the video") as video:
            return clip.transform.pixels(video.frame(match.time), name=name)
    (data,) = read_encoded([match])
    if data is None:
        raise ImageError("missing_file", f"{name} can no longer be read; update the index: `mobileclip index`")
    return read_tower_image(data, clip.transform, reduced=reduced, name=name).pixels

"""What is asked for as one direction, and the pictures that are nearest to it, in their order.

`examples/web/src/ranking.js` says the same in a browser, and tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.searching.filtering import Condition, matching, parse_condition
from mobileclip.collections.searching.learned import Cache, nearest_with
from mobileclip.collections.searching.matches import Match, first_of_videos, match_of
from mobileclip.collections.searching.neighbours import Found, NeighbourGraphs, nearest_of
from mobileclip.collections.store.presence import Presence
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.data.images.opening import read_image_file
from mobileclip.data.images.reading import read_tower_image
from mobileclip.data.images.transform import LIMITS
from mobileclip.inference.image_text_model import ImageTextModel

Vector = NDArray[np.float32]
Picture = str | Path | bytes

# What is not wanted turns a query away from it, by less than what is wanted turns it there.
AWAY = 0.5
"""What is not wanted weighs so much beside what is."""
# Times as many are looked for when frames of few videos fill the first places.
_MORE = 8


def direction_of(
    clip: Callable[[], ImageTextModel],
    *,
    texts: Sequence[str],
    pictures: Sequence[Picture],
    known: Sequence[Vector],
    without: Sequence[str],
    reduced: bool,
) -> Vector:
    """Return the direction between all that is wanted, turned away from what is not.

    Shape:
        (dim,), of length 1.

    Args:
        clip: gives the model of the index, which embeddings alone need not wait for.
        texts: what pictures show.
        pictures: what they are like: paths, or the bytes of files.
        known: embeddings of what they are like, of shape (dim,).
        without: texts or pictures that results should not match.
        reduced: whether pictures are decoded no larger than they need to be, as those of the index were.

    Raises:
        ValueError: if nothing is wanted.
        ImageError: if a picture cannot be read.
    """
    if not any(text.strip() for text in texts) and not pictures and not known:
        raise ValueError("there is nothing to search for; give a text, or a picture")
    wanted = [*_of_texts(clip, texts), *(embedding_of(clip(), one, reduced=reduced) for one in pictures), *known]
    query = np.asarray(np.mean(wanted, axis=0, dtype=np.float64))
    if without:
        query = query - AWAY * np.mean(_of_texts(clip, without), axis=0, dtype=np.float64)
    unit: Vector = (query / max(float(np.linalg.norm(query)), float(np.finfo(np.float32).tiny))).astype(np.float32)
    return unit


def nearest_matches(
    snapshot: Snapshot,
    graphs: NeighbourGraphs | None,
    query: Vector,
    k: int,
    *,
    where: Sequence[Condition | str],
    all_frames: bool,
    cache: Cache | None = None,
) -> list[Match]:
    """Return the pictures that are nearest to a direction, the nearest first; of files that are gone, none.

    Args:
        snapshot: what the index holds.
        graphs: what proposes neighbours; None where all are compared, as they are by graphs where there are conditions.
        query: the direction, of shape (dim,).
        k: number of results, at most.
        where: conditions on columns; all must hold.
        all_frames: whether a video may be found by several of its frames.
        upgraded: the space that the index is brought to, which then ranks them.
        cache: what examples add to the scores, in the space of the index; all pictures are compared then.

    Raises:
        ValueError: if a condition is none.
    """
    conditions = [parse_condition(one) if isinstance(one, str) else one for one in where]
    places = matching(snapshot, conditions) if conditions else None
    wanted, there = k, Presence()
    while True:
        if cache is not None:
            found, scores = nearest_with(snapshot.vectors, places, query, cache, wanted)
        elif places is None and graphs is not None:
            found, scores = graphs.nearest(query, wanted)
        else:
            found, scores = nearest_of(snapshot.vectors, places, query, wanted)
        pairs = zip(snapshot.rows(found), scores.tolist(), strict=True)
        shown = [(row, score) for row, score in pairs if row is not None and row["path"] in there]
        chosen = range(len(shown)) if all_frames else first_of_videos([row for row, _ in shown])
        if len(chosen) >= k or len(found) < wanted:
            return [match_of(*shown[number]) for number in chosen[:k]]
        wanted *= _MORE


def _of_texts(clip: Callable[[], ImageTextModel], texts: Sequence[str]) -> list[Vector]:
    return list(clip().encode_text(list(texts), keep=True).numpy()) if texts else []


def embedding_of(clip: ImageTextModel, picture: Picture, *, reduced: bool) -> Vector:
    """Return the embedding of a picture, which is read as those of the index are.

    Args:
        clip: the model of the index.
        picture: its path, or the bytes of its file.
        reduced: see `direction_of`.

    Raises:
        ImageError: if it cannot be read.
    """
    name = "the picture" if isinstance(picture, bytes) else f"image {str(picture)!r}"
    data = picture if isinstance(picture, bytes) else read_image_file(storage.local_path(str(picture)), LIMITS, name)
    pixels = read_tower_image(data, clip.transform, reduced=reduced, name=name).pixels
    embedding: Vector = clip.encode_pixels(torch.from_numpy(pixels)[None]).numpy()[0]
    return embedding

"""Pictures that show the same: found by their embeddings, with the best copy of each proposed. Nothing is deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.collections.searching.matches import Match, match_of
from mobileclip.collections.searching.neighbours import NeighbourGraphs
from mobileclip.collections.searching.pictures import small_pictures
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.progress import Progress
from mobileclip.terminal import console

THRESHOLD = 0.95
"""Cosine similarity from which on two pictures show the same."""

_BLOCK = 2048
# Of a picture that stands there a million times, so many copies are found by each.
_MOST_NEIGHBOURS = 64
# Candidates of each graph. Among a million vectors, copies with a cosine of 0.96 were all found with 256, 99.6 % with
# 128 and 96 % with 64.
_CANDIDATES = 256
# Pictures are compared for sharpness at one size, at which a blurred one still differs.
_SHARPNESS_SIDE = 768


@attrs.frozen(kw_only=True)
class DuplicateGroup:
    """Pictures that show the same.

    Args:
        best: the copy that is proposed to be kept: that of the most pixels, of these the sharpest, of these the one of
            the most bytes.
        others: each with its similarity with the best one as its score.
    """

    best: Match
    others: tuple[Match, ...]


def require_threshold(threshold: float) -> None:
    """Check a cosine similarity from which on two pictures show the same.

    Raises:
        ValueError: if it is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold:g}, expected a cosine similarity above 0 and at most 1")


def find_duplicates(
    snapshot: Snapshot, graphs: NeighbourGraphs | None, *, threshold: float = THRESHOLD, show_progress: bool = True
) -> list[DuplicateGroup]:
    """Return the groups of pictures that show the same, those of the most pictures first.

    Every picture of a group is like its largest one. Up to 200,000 pictures are all compared with each other; of more,
    each with its nearest 64. Frames of videos are left out: those of one video are alike. Several names of one file
    (links) are no copies of it: whoever deletes some of them may delete the only copy. Its own name counts.

    Args:
        snapshot: of the collection.
        graphs: that propose neighbours; None to compare all pictures.
        threshold: cosine similarity from which on two show the same; embeddings are rounded, so that copies have 0.999
            and more.
        show_progress: whether to show how far it is.

    Raises:
        ValueError: if the threshold is not above 0 and at most 1.
    """
    require_threshold(threshold)
    table = snapshot.table
    pixels = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
    order = np.lexsort((snapshot.ids, -table["size"].to_numpy(), -pixels))
    is_picture = table["time"].is_null().to_numpy()
    order = order[is_picture[order]]
    leader = np.full(len(snapshot), -1)
    shown = console(shown=show_progress)
    with Progress("comparing", total=len(order), unit="pictures", console=shown) as bar:
        for places, neighbours in _near(snapshot, graphs, order, threshold):
            for place, near in zip(places, neighbours, strict=True):
                if leader[place] < 0:
                    leader[near[(leader[near] < 0) & is_picture[near]]] = place
                    leader[place] = place
            bar.advance(len(places))
    return _groups(snapshot, leader)


def _near(
    snapshot: Snapshot, graphs: NeighbourGraphs | None, order: NDArray[np.int64], threshold: float
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.int64]]]]:
    """Yield pictures in order, each with those that are like it."""
    for start in range(0, len(order), _BLOCK):
        places = order[start : start + _BLOCK]
        if graphs is None:
            yield places, _compared(snapshot.vectors, places, order[start:], threshold)
        else:
            queries = snapshot.vectors[places].astype(np.float32)
            found = graphs.nearest_to_each(queries, _MOST_NEIGHBOURS, num_candidates=_CANDIDATES)
            yield places, [near[scores >= threshold] for near, scores in found]


def _compared(
    vectors: NDArray[np.float16], places: NDArray[np.int64], others: NDArray[np.int64], threshold: float
) -> list[NDArray[np.int64]]:
    """Return for each of some pictures those of the others that are like it."""
    wanted = torch.from_numpy(vectors[places]).float()
    rows, columns = [], []
    for start in range(0, len(others), _BLOCK):
        similarity = wanted @ torch.from_numpy(vectors[others[start : start + _BLOCK]]).float().T
        row, column = torch.nonzero(similarity >= threshold, as_tuple=True)
        rows.append(row.numpy())
        columns.append(others[column.numpy() + start])
    of, like = np.concatenate(rows), np.concatenate(columns)
    by_row = np.argsort(of, kind="stable")
    return np.split(like[by_row], np.searchsorted(of[by_row], np.arange(1, len(places))))


def _groups(snapshot: Snapshot, leader: NDArray[np.int64]) -> list[DuplicateGroup]:
    by_leader = np.argsort(leader, kind="stable")[np.count_nonzero(leader < 0) :]
    starts = np.flatnonzero(np.diff(leader[by_leader], prepend=-1))
    members = [one for one in np.split(by_leader, starts[1:]) if len(one) > 1]
    groups = [_group(snapshot, files) for one in members if len(files := _files_apart(snapshot, one)) > 1]
    return sorted(groups, key=lambda group: (-len(group.others), group.best.name))


def _files_apart(snapshot: Snapshot, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one of the pictures of every file: of several names for it, one that is no link where there is one."""
    chosen: dict[tuple[object, ...], tuple[bool, int]] = {}
    file: tuple[object, ...]
    for place in members.tolist():
        row = snapshot.row(place)
        path, file, is_own = row["path"], (row["path"], row["part"]), False
        with suppress(OSError):  # one that is gone is nobody else's
            status = Path(path).stat()
            file, is_own = (status.st_dev, status.st_ino, row["part"]), os.path.realpath(path) == path
        if file not in chosen or (is_own and not chosen[file][0]):
            chosen[file] = (is_own, place)
    return np.array(sorted(place for _, place in chosen.values()), np.int64)


def _group(snapshot: Snapshot, members: NDArray[np.int64]) -> DuplicateGroup:
    matches = [match_of(snapshot, int(place), 1.0) for place in members]
    most = max(match.width * match.height for match in matches)
    largest = [number for number, match in enumerate(matches) if match.width * match.height == most]
    sharp = _sharpness([matches[number] for number in largest])
    best = max(zip(largest, sharp, strict=True), key=lambda one: (one[1], matches[one[0]].size, -one[0]))[0]
    vectors = snapshot.vectors[members].astype(np.float32)
    scores = vectors @ vectors[best]
    others = [
        attrs.evolve(match, score=round(float(score), 4))
        for number, (match, score) in enumerate(zip(matches, scores, strict=True))
        if number != best
    ]
    others.sort(key=lambda match: (-match.score, match.name))
    return DuplicateGroup(best=matches[best], others=tuple(others))


def _sharpness(matches: Sequence[Match]) -> list[float]:
    """Return how much neighbouring pixels differ in each picture; of one alone, and of one that is gone, zero.

    The variance of the Laplacian of the brightness, which is small where edges are blurred.
    """
    if len(matches) == 1:
        return [0.0]
    found = []
    for image in small_pictures(matches, _SHARPNESS_SIDE):
        if image is None or min(image.size) < 3:
            found.append(0.0)
            continue
        grey = np.asarray(image.convert("L"), np.float32)
        sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        found.append(float((sides - 4 * grey[1:-1, 1:-1]).var()))
    return found

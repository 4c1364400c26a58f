"""Groups near-duplicate images by their embeddings, and proposes the best copy of each group; deletes nothing."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mobileclip.collections.images import make_small, read_encoded
from mobileclip.collections.nearest import NeighbourGraph
from mobileclip.collections.scan import Presence, stamp_of
from mobileclip.collections.snapshot import Match, Snapshot, match_of
from mobileclip.collections.tags import Vectors
from mobileclip.progress import Progress
from mobileclip.terminal import console

# Maximum standard deviation of a blank image's pixel values (0 to 255), and side of the copy to measure; a small copy
# averages out noise.
_FLAT, _FLAT_SIDE = 5.0, 64
# Sharpness is compared at one size, large enough to tell blurred images from sharp ones.
_SHARPNESS_SIDE = 768


@attrs.frozen(kw_only=True)
class UnchangedImage:
    """An image that has not changed since indexing.

    Args:
        index: position of the image in the snapshot.
        match: metadata of the image.
        is_blank: whether nearly all pixels of the image have the same colour.
        sharpness: sharpness of the image, see `_sharpness`; 0 (not measured) if no other copy has the same number of
            pixels.
    """

    index: int
    match: Match
    is_blank: bool
    sharpness: float


def with_unchanged_files(snapshot: Snapshot, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of the images whose files still have the indexed modification times and sizes."""
    stamps: dict[str, tuple[int, int] | None] = {}
    kept = []
    for index, row in zip(indices.tolist(), snapshot.rows(indices, ("path", "part", "size", "mtime_ns")), strict=True):
        if row is None:
            continue
        if row["path"] not in stamps:
            stamps[row["path"]] = stamp_of(row["path"])
        stamp = stamps[row["path"]]
        if stamp is not None and stamp[0] == row["mtime_ns"] and (row["part"] is not None or stamp[1] == row["size"]):
            kept.append(index)
    return np.array(kept, np.int64)


def read_unchanged(rows: Mapping[int, dict[str, Any]]) -> list[UnchangedImage]:
    """Return the readable images whose content is unchanged since indexing.

    Args:
        rows: rows of the images, by position in the snapshot.
    """
    matches = [match_of(row, 1.0) for row in rows.values()]
    num_pixels = Counter(match.width * match.height for match in matches)
    looks = []
    for (index, row), match, data in zip(rows.items(), matches, read_encoded(matches), strict=True):
        if data is None or hashlib.sha256(data).hexdigest() != row["sha256"]:
            continue
        is_compared = num_pixels[match.width * match.height] > 1
        # One decoding serves both measures, as decoding takes much longer than either.
        image = make_small(data, match, _SHARPNESS_SIDE if is_compared else _FLAT_SIDE)
        if image is not None:
            sharpness = _sharpness(image) if is_compared else 0.0
            looks.append(UnchangedImage(index=index, match=match, is_blank=_spread(image) < _FLAT, sharpness=sharpness))
    return looks


def _sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of the brightness; blurred edges have a small variance."""
    if min(image.size) < 3:
        return 0.0
    grey = np.asarray(image.convert("L"), np.int16)
    sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((sides - 4 * grey[1:-1, 1:-1]).var(dtype=np.float32))


def _spread(image: Image.Image) -> float:
    """Shrink an image in place, and return the largest standard deviation among its colour channels."""
    image.thumbnail((_FLAT_SIDE, _FLAT_SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    channels = np.asarray(image, np.float32).reshape(-1, 3).T.copy()
    return float(channels.std(axis=1).max())


THRESHOLD = 0.95
"""Minimum cosine similarity of near duplicates."""

MOST_COMPARED = 200_000
"""Maximum number of images for comparing all pairs; above this number, a neighbour graph proposes the pairs."""

_BLOCK = 2048
# Maximum number of neighbours per image, as an image may have a million copies.
_MOST_NEIGHBOURS = 64
# Number of candidates from the graph. Among a million vectors, 256 candidates found all copies with a cosine of 0.96,
# 128 candidates found 99.6 %, and 64 candidates 96 %.
_CANDIDATES = 256


@attrs.frozen(kw_only=True)
class DuplicateGroup:
    """A group of near-duplicate images: the best copy, and the other copies.

    Args:
        best: copy to keep, chosen by number of pixels, then by sharpness, then by file size.
        others: all other copies, with the similarity to the best copy as the score.
    """

    best: Match
    others: tuple[Match, ...]


@attrs.frozen(kw_only=True)
class Duplicates(Sequence[DuplicateGroup]):
    """The near-duplicates of a collection, as a sequence of groups.

    Args:
        groups: groups, largest first.
        blank: similar images of nearly one colour. These images are in no group, since their similarity is meaningless.
        num_left_out: number of images that are missing or have changed since indexing.
    """

    groups: tuple[DuplicateGroup, ...] = ()
    blank: tuple[Match, ...] = ()
    num_left_out: int = 0

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> DuplicateGroup: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[DuplicateGroup]: ...

    def __getitem__(self, index: int | slice) -> DuplicateGroup | Sequence[DuplicateGroup]:
        """Return a group, or a slice of the groups."""
        return self.groups[index]

    def still_there(self) -> Duplicates:
        """Return the duplicates whose files still exist; drop a group if its best copy is missing."""
        there = Presence()
        groups = [
            attrs.evolve(group, others=tuple(one for one in group.others if one.path in there))
            for group in self.groups
            if group.best.path in there
        ]
        return attrs.evolve(self, groups=tuple(group for group in groups if group.others))


def require_threshold(threshold: float) -> None:
    """Check that a cosine similarity threshold is above 0 and at most 1.

    Raises:
        ValueError: if the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold:g}, expected a cosine similarity above 0 and at most 1")


def find_duplicates(
    snapshot: Snapshot,
    graph: NeighbourGraph | None,
    *,
    threshold: float = THRESHOLD,
    show_progress: bool = True,
) -> Duplicates:
    """Return the groups of near duplicates, largest groups first.

    Every image of a group is similar to the group's best image. The function reads all images of a group to check that
    their content is unchanged. Without a graph, the function compares all images; with a graph, it compares each image
    with its 64 nearest neighbours. The function skips video frames, since frames of the same video are similar. Links
    to a file do not count as copies, since deleting a link's target may delete the only copy.

    Args:
        snapshot: snapshot of the collection.
        graph: neighbour graph; None to compare all images.
        threshold: minimum cosine similarity of near duplicates. Identical copies may have a similarity of only 0.999,
            since the index rounds embeddings to float16.
        show_progress: whether to show progress.

    Raises:
        ValueError: if the threshold is not in (0, 1].
    """
    require_threshold(threshold)
    rows = snapshot.rows(np.arange(len(snapshot)), ("width", "height", "size", "time"))
    images = [(index, row) for index, row in enumerate(rows) if row is not None and row["time"] is None]
    images.sort(key=lambda one: (-one[1]["width"] * one[1]["height"], -one[1]["size"], one[0]))
    num_images = len(images)
    order = with_unchanged_files(snapshot, np.array([index for index, _ in images], np.int64))
    is_compared = np.zeros(len(snapshot), bool)
    is_compared[order] = True
    leader = np.full(len(snapshot), -1)
    shown = console(shown=show_progress)
    with Progress("comparing", total=len(order), unit="images", console=shown) as bar:
        for indices, neighbours in _near(snapshot, graph, order, threshold):
            for index, near in zip(indices, neighbours, strict=True):
                if leader[index] < 0:
                    leader[near[(leader[near] < 0) & is_compared[near]]] = index
                    leader[index] = index
            bar.advance(len(indices))
    groups, blank, num_changed = _groups(snapshot, leader, threshold)
    return Duplicates(groups=groups, blank=blank, num_left_out=num_images - len(order) + num_changed)


def _near(
    snapshot: Snapshot, graph: NeighbourGraph | None, order: NDArray[np.int64], threshold: float
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.int64]]]]:
    """Yield blocks of images in the given order, and the near duplicates of each image."""
    for start in range(0, len(order), _BLOCK):
        indices = order[start : start + _BLOCK]
        if graph is None:
            yield indices, _compared(snapshot.vectors, indices, order[start:], threshold)
        else:
            queries = snapshot.vectors[indices].astype(np.float32)
            found = graph.nearest_to_each(queries, _MOST_NEIGHBOURS, num_candidates=_CANDIDATES)
            yield indices, [near[scores >= threshold] for near, scores in found]


def _compared(
    vectors: Vectors, indices: NDArray[np.int64], others: NDArray[np.int64], threshold: float
) -> list[NDArray[np.int64]]:
    """Return the near duplicates of each image in `indices`, among the images in `others`."""
    wanted = torch.from_numpy(vectors[indices]).float()
    rows, columns = [], []
    for start in range(0, len(others), _BLOCK):
        similarity = wanted @ torch.from_numpy(vectors[others[start : start + _BLOCK]]).float().T
        row, column = torch.nonzero(similarity >= threshold, as_tuple=True)
        rows.append(row.numpy())
        columns.append(others[column.numpy() + start])
    of, like = np.concatenate(rows), np.concatenate(columns)
    by_row = np.argsort(of, kind="stable")
    return np.split(like[by_row], np.searchsorted(of[by_row], np.arange(1, len(indices))))


def _groups(
    snapshot: Snapshot, leader: NDArray[np.int64], threshold: float
) -> tuple[tuple[DuplicateGroup, ...], tuple[Match, ...], int]:
    """Return the groups, the blank images, and the number of changed images."""
    by_leader = np.argsort(leader, kind="stable")[np.count_nonzero(leader < 0) :]
    starts = np.flatnonzero(np.diff(leader[by_leader], prepend=-1))
    several = [members for members in np.split(by_leader, starts[1:]) if len(members) > 1]
    indices = np.concatenate([np.empty(0, np.int64), *several])
    known = dict(zip(indices.tolist(), snapshot.rows(indices), strict=True))
    groups: list[DuplicateGroup] = []
    blank: list[Match] = []
    num_changed = 0
    for members in several:
        files = _files_apart({index: row for index in members.tolist() if (row := known[index]) is not None})
        if len(files) > 1:
            looks = read_unchanged(files)
            num_changed += len(files) - len(looks)
            blank += [look.match for look in looks if look.is_blank]
            groups += _grouped(snapshot, [look for look in looks if not look.is_blank], threshold)
    groups.sort(key=lambda group: (-len(group.others), group.best.name))
    return tuple(groups), tuple(sorted(blank, key=lambda match: match.name)), num_changed


def _files_apart(rows: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return one row per file; if a file has several paths, prefer a path that is not a link."""
    files: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, row in rows.items():
        file: tuple[object, ...] = (row["path"], row["part"])
        with suppress(OSError):  # a missing file has no other names
            status = Path(row["path"]).stat()
            file = (status.st_dev, status.st_ino, row["part"])
        files[file].append(index)

    def is_link(index: int) -> bool:
        path: str = rows[index]["path"]
        return os.path.realpath(path) != path

    # The check is slow, so it runs only for files with several names.
    chosen = [indices[0] if len(indices) == 1 else min(indices, key=is_link) for indices in files.values()]
    return {index: rows[index] for index in sorted(chosen)}


def _grouped(snapshot: Snapshot, looks: Sequence[UnchangedImage], threshold: float) -> Iterator[DuplicateGroup]:
    """Yield groups in which every image is similar to the group's best image."""
    while len(looks) > 1:
        best = max(looks, key=_worth)
        indices = [look.index for look in looks]
        scores = snapshot.vectors[indices].astype(np.float32) @ snapshot.vectors[best.index].astype(np.float32)
        near = [(look, float(score)) for look, score in zip(looks, scores, strict=True) if score >= threshold]
        others = [attrs.evolve(look.match, score=round(score, 4)) for look, score in near if look is not best]
        if others:
            others.sort(key=lambda match: (-match.score, match.name))
            yield DuplicateGroup(best=best.match, others=tuple(others))
        done = {best.index, *(look.index for look, _ in near)}
        looks = [look for look in looks if look.index not in done]


def _worth(look: UnchangedImage) -> tuple[int, float, int, int]:
    """Return the sort key for choosing the copy to keep."""
    return look.match.width * look.match.height, look.sharpness, look.match.size, -look.index

"""Defines read-only snapshots of an index, and search results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.scan import Presence
from mobileclip.collections.store import COLUMNS, Store, column_array
from mobileclip.collections.tags import LEVELS, TagWords, cosines, read_tag_words
from mobileclip.progress import duration


@attrs.frozen(kw_only=True)
class Match:
    """A search result: an image with its score.

    Args:
        id: permanent id of the image in its index.
        path: path of the image's file.
        part: key of the sample in its shard; None for other files.
        score: cosine similarity with the query, from -1 to 1.
        size: size of the encoded image or video, in bytes.
        width: width in pixels.
        height: height in pixels.
        camera: camera model, if known.
        taken: date and time taken, if known, such as `2024-05-01T12:30:00`.
        latitude: latitude in degrees, if known.
        longitude: longitude in degrees, if known.
        time: time of a video frame, in seconds since the first frame; None for an image.
    """

    id: int
    path: str
    part: str | None
    score: float
    size: int
    width: int
    height: int
    camera: str | None
    taken: str | None
    latitude: float | None
    longitude: float | None
    time: float | None

    @property
    def name(self) -> str:
        """The path, followed by the part or the time."""
        if self.time is not None:
            return f"{self.path} {format_time(self.time)}"
        return self.path if self.part is None else f"{self.path}/{self.part}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None, by name."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


def format_time(seconds: float) -> str:
    """Format a time like video players do.

    Examples:
        >>> format_time(42.5), format_time(3723)
        ('0:42', '1:02:03')
    """
    return duration(int(seconds))


def first_of_videos(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the positions of all images and of the first frame of each video.

    Args:
        rows: rows of the images, nearest first.
    """
    seen: set[str] = set()
    chosen = []
    for number, row in enumerate(rows):
        if row["time"] is None or row["path"] not in seen:
            chosen.append(number)
        if row["time"] is not None:
            seen.add(row["path"])
    return chosen


def match_of(row: Mapping[str, Any], score: float) -> Match:
    """Convert a row to a search result.

    Args:
        row: row of the image, see `Snapshot.rows`.
        score: cosine similarity with the query.
    """
    known = {field.name: row[field.name] for field in attrs.fields(Match) if field.name != "score"}
    return Match(score=round(score, 4), **known)


def hidden_error(count: int) -> ValueError:
    """Return the error for a search in an index whose files are all missing."""
    return ValueError(
        f"the files of all {count:,} images are missing; mount the disk, or index the moved files: "
        "`mobileclip index NEW_FOLDER --index INDEX`"
    )


def _unknown_id(number: int) -> ValueError:
    return ValueError(
        f"the index has no image with the id {number}; search again, since an update may have removed the image"
    )


TAG = "tag"
"""The column of tags; `tag:WORD` is the column of a word's scores."""

# Maximum number of tags to return per image.
_MOST_TAGS = 5


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """The images of an index at one point in time: ids and embeddings.

    An update adds and removes rows of an index, but never changes a row.

    Shape:
        vectors: `(images, dim)`, float16; ids: `(images,)`, int64, ascending.

    Args:
        ids: ids of the rows.
        vectors: embeddings of the images, of unit length.
        num_unreadable: number of unreadable files.
        store: store of the index, for reading rows; None for embeddings without an index.
        token: token of the store at the time of the snapshot.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float16]
    num_unreadable: int = 0
    store: Store | None = None
    token: str = ""
    _columns: dict[str, NDArray[Any]] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def index_of(self, number: int) -> int:
        """Return the position of an image by its id.

        Raises:
            ValueError: if the index has no image with this id.
        """
        index = int(np.searchsorted(self.ids, number))
        if index == len(self.ids) or self.ids[index] != number:
            raise _unknown_id(number)
        return index

    def row(self, number: int) -> dict[str, Any]:
        """Return the row of an image by its id.

        Raises:
            ValueError: if the index has no image with this id, or an update has removed the image.
        """
        (row,) = self.rows([self.index_of(number)])
        if row is None:
            raise _unknown_id(number)
        return row

    def rows(
        self, indices: Sequence[int] | NDArray[np.int64], columns: Sequence[str] = COLUMNS
    ) -> list[dict[str, Any] | None]:
        """Return the rows of images as values by column; None for a removed image.

        Args:
            indices: positions of the images.
            columns: names of the columns to read.
        """
        assert self.store is not None, "only the snapshot of an index has rows"
        wanted = self.ids[np.asarray(indices, np.int64)].tolist()
        ids = None if len(wanted) == len(self) else wanted
        found = {number: values for number, *values in self.store.values("id", *columns, ids=ids, since=self.token)}
        return [dict(zip(columns, found[number], strict=True)) if number in found else None for number in wanted]

    def column(self, name: str) -> NDArray[Any]:
        """Return a column's values for all images, see `column_array`, and cache the values.

        Removed images have no value.

        Shape:
            `(images,)`.
        """
        assert self.store is not None, "only the snapshot of an index has rows"
        if name not in self._columns and name.startswith(f"{TAG}:"):
            words = self.require_words()
            self._columns[name] = words.scores(self.vectors, words.index_of(name.removeprefix(f"{TAG}:")))
        if name not in self._columns:
            found = self.store.values("id", name, since=self.token)
            numbers, values = np.array([number for number, _ in found]), [value for _, value in found]
            indices = np.searchsorted(numbers, self.ids)
            is_gone = ~np.isin(self.ids, numbers, assume_unique=True)
            self._columns[name] = column_array(name, [*values, None])[np.where(is_gone, len(values), indices)]
        return self._columns[name]

    @cached_property
    def words(self) -> TagWords | None:
        """The tag words; None if the index has no tag words, or only tag words of a different model."""
        words = None if self.store is None else read_tag_words(self.store.folder)
        return words if words is None or self._is_of(words) else None

    def _is_of(self, words: TagWords) -> bool:
        return self.store is not None and words.about.identity.is_same(self.store.about.identity)

    def require_words(self) -> TagWords:
        """Return the tag words.

        Raises:
            ValueError: if the index has no tag words, or only tag words of a different model.
        """
        assert self.store is not None, "only the snapshot of an index has words"
        if self.words is not None:
            return self.words
        folder, other = self.store.folder, read_tag_words(self.store.folder)
        if other is None:
            raise ValueError(
                f"the index {folder} has no tags; add tags: `mobileclip tag --vocabulary FILE --index {folder}`"
            )
        raise ValueError(
            f"the tags of the index {folder} belong to the model {other.about.model}, "
            f"but the index now has the model {self.store.about.model}; "
            f"update the tags: `mobileclip tag --index {folder}`"
        )

    def tags(self, indices: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, ...]]:
        """Return the tags of some images, best tag first, at most five tags per image.

        Args:
            indices: positions of the images.
        """
        words = self.words
        if words is None or not len(indices):
            return [() for _ in indices]
        similar = cosines(self.vectors[np.asarray(indices, np.int64)], words.vectors.astype(np.float32))
        scores = np.stack([np.interp(*one, LEVELS) for one in zip(similar.T, words.levels, strict=True)], axis=1)
        # Of words with equal scores, the more similar word comes first: an image may be the best image for many words.
        best = np.lexsort((-similar, -scores), axis=1)[:, :_MOST_TAGS]
        return [
            tuple(words.words[word] for word in row if scores[index, word] >= 1 - words.share)
            for index, row in enumerate(best)
        ]

    def shown(self) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
        """Return the positions and rows of images with existing files.

        Raises:
            ValueError: if the index has no images, or all files are missing.
        """
        if not len(self):
            raise ValueError("the index has no images; add images: `mobileclip index FOLDER`")
        rows, there = self.rows(np.arange(len(self))), Presence()
        shown = {index: row for index, row in enumerate(rows) if row is not None and row["path"] in there}
        if not shown:
            raise hidden_error(len(self))
        return np.array(list(shown), np.int64), list(shown.values())


def take_snapshot(store: Store) -> Snapshot:
    """Take a snapshot of an index; later writes do not change the snapshot.

    Raises:
        ValueError: if the index is damaged.
        OSError: if the index cannot be read.
    """
    token, ids, vectors, num_unreadable = store.load()
    return Snapshot(ids=ids, vectors=vectors, num_unreadable=num_unreadable, store=store, token=token)

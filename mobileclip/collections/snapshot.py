"""A read-only snapshot of an index, and search results."""

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
        id: permanent id in its index.
        path: path of its file.
        part: key of its sample, in a file with several samples.
        score: cosine similarity with the query, from -1 to 1.
        size: size of the encoded image or the video, in bytes.
        width: in pixels.
        height: in pixels.
        camera: camera model, if known.
        taken: date, if known, such as `2024-05-01T12:30:00`.
        latitude: in degrees, if known.
        longitude: in degrees, if known.
        time: time of a frame of a video, in seconds since its first one.
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
        """The path, with the part or the time after it."""
        if self.time is not None:
            return f"{self.path} {format_time(self.time)}"
        return self.path if self.part is None else f"{self.path}/{self.part}"

    def known(self) -> dict[str, Any]:
        """Return its metadata by name."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


def format_time(seconds: float) -> str:
    """Return a time as players show it.

    Examples:
        >>> clock(42.5), clock(3723)
        ('0:42', '1:02:03')
    """
    return duration(int(seconds))


def first_of_videos(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return which of some images are left when only the first frame of each video counts.

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
    """Return a row as a search result.

    Args:
        row: row of the image, see `Snapshot.rows`.
        score: cosine similarity with the query.
    """
    known = {field.name: row[field.name] for field in attrs.fields(Match) if field.name != "score"}
    return Match(score=round(score, 4), **known)


def hidden_error(count: int) -> ValueError:
    """Return the error of a search if all files are missing."""
    return ValueError(
        f"none of the {count:,} pictures is where it was: mount the disk that they are on; or, where they have moved, "
        "`mobileclip index NEW_FOLDER --index INDEX`"
    )


TAG = "tag"
"""The column of tags; behind it and a colon, a word names the column of its scores."""

# Tags of a picture that are told, at most.
_MOST_TAGS = 5


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """The images of an index.

    Rows never change: an image is unchanged, or was removed.

    Shape:
        vectors: `(pictures, dim)`, float16; ids: `(pictures,)`, int64, rising.

    Args:
        ids: ids of the rows.
        vectors: of unit length.
        num_unreadable: unreadable files.
        store: store of the rows.
        token: token of the store at reading.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float16]
    num_unreadable: int = 0
    store: Store | None = None
    token: str = ""
    _columns: dict[str, NDArray[Any]] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.ids)

    def place(self, number: int) -> int:
        """Return where an image is, by its id.

        Raises:
            ValueError: if there is none of that id.
        """
        place = int(np.searchsorted(self.ids, number))
        if place == len(self.ids) or self.ids[place] != number:
            raise ValueError(f"the index has no image with the id {number}; search again, it may have been removed")
        return place

    def rows(
        self, places: Sequence[int] | NDArray[np.int64], columns: Sequence[str] = COLUMNS
    ) -> list[dict[str, Any] | None]:
        """Return columns of some images; None for a removed image.

        Args:
            places: positions of the images.
            columns: requested columns.
        """
        assert self.store is not None, "rows are asked of an index"
        wanted = self.ids[np.asarray(places, np.int64)].tolist()
        ids = None if len(wanted) == len(self) else wanted
        found = {number: values for number, *values in self.store.values("id", *columns, ids=ids, since=self.token)}
        return [dict(zip(columns, found[number], strict=True)) if number in found else None for number in wanted]

    def column(self, name: str) -> NDArray[Any]:
        """Return a column's values for all images, see `column_array`; cached.

        Removed images have no value.

        Shape:
            `(pictures,)`.
        """
        assert self.store is not None, "rows are asked of an index"
        if name not in self._columns and name.startswith(f"{TAG}:"):
            words = self.require_words()
            self._columns[name] = words.scores(self.vectors, words.place(name.removeprefix(f"{TAG}:")))
        if name not in self._columns:
            found = self.store.values("id", name, since=self.token)
            numbers, values = np.array([number for number, _ in found]), [value for _, value in found]
            places = np.searchsorted(numbers, self.ids)
            is_gone = ~np.isin(self.ids, numbers, assume_unique=True)
            self._columns[name] = column_array(name, [*values, None])[np.where(is_gone, len(values), places)]
        return self._columns[name]

    @cached_property
    def words(self) -> TagWords | None:
        """The words for tags; None without words, or for words of another model."""
        words = None if self.store is None else read_tag_words(self.store.folder)
        return words if words is None or self._is_of(words) else None

    def _is_of(self, words: TagWords) -> bool:
        return self.store is not None and words.about.identity.is_same(self.store.about.identity)

    def require_words(self) -> TagWords:
        """Return the words for tags.

        Raises:
            ValueError: if there are none, or they are of another model.
        """
        assert self.store is not None, "words are asked of an index"
        if self.words is not None:
            return self.words
        folder, other = self.store.folder, read_tag_words(self.store.folder)
        if other is None:
            raise ValueError(
                f"the index {folder} has no tags; write some: `mobileclip tag --vocabulary FILE --index {folder}`"
            )
        raise ValueError(
            f"the tags of the index {folder} are of {other.about.model}, and it is of {self.store.about.model} now; "
            f"write them again: `mobileclip tag --index {folder}`"
        )

    def tags(self, places: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, ...]]:
        """Return the tags of some images, the one that fits best first, five of each at most.

        Args:
            places: positions of the images.
        """
        words = self.words
        if words is None or not len(places):
            return [() for _ in places]
        similar = cosines(self.vectors[np.asarray(places, np.int64)], words.vectors.astype(np.float32))
        scores = np.stack([np.interp(*one, LEVELS) for one in zip(similar.T, words.levels, strict=True)], axis=1)
        # Of words that a picture fits equally well, as the best of all, the more similar one comes first.
        best = np.lexsort((-similar, -scores), axis=1)[:, :_MOST_TAGS]
        return [
            tuple(words.words[word] for word in row if scores[place, word] >= 1 - words.share)
            for place, row in enumerate(best)
        ]

    def shown(self) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
        """Return the positions and rows of images with existing files.

        Raises:
            ValueError: if there is no image, or none is where it was.
        """
        if not len(self):
            raise ValueError("there are no images in the index; add some: `mobileclip index FOLDER`")
        rows, there = self.rows(np.arange(len(self))), Presence()
        shown = {place: row for place, row in enumerate(rows) if row is not None and row["path"] in there}
        if not shown:
            raise hidden_error(len(self))
        return np.array(list(shown), np.int64), list(shown.values())


def take_snapshot(store: Store) -> Snapshot:
    """Return a snapshot of an index, without later images.

    Raises:
        ValueError: if the index is damaged.
        OSError: if it cannot be read.
    """
    token, ids, vectors, num_unreadable = store.load()
    return Snapshot(ids=ids, vectors=vectors, num_unreadable=num_unreadable, store=store, token=token)

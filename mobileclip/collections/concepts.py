"""Stores the concepts of an index, and scores images by a concept's text and example images.

    score(x) = cos(x, text) + alpha * (sum_yes exp(-beta (1 - cos(x, yes))) - sum_no exp(-beta (1 - cos(x, no))))

Concepts have a separate table, so any process may change concepts without the index's lock.

Source: Tip-Adapter (arXiv 2111.03930), section 3.2; alpha and beta have the initial values of Tip-Adapter. Differs:
scores are cosines, not scaled by 100, and negative examples lower the score.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.nearest import Found
from mobileclip.collections.snapshot import Snapshot, format_time
from mobileclip.collections.store import INDEX, read_transaction, write_transaction
from mobileclip.collections.tags import BLOCK, Vectors, cosines
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

Key = tuple[str, float | None]
"""Identity of an image, independent of its path: SHA-256 of the content, and time of a video frame in seconds (None
for an image)."""

MOST_EXAMPLES = 200
"""Maximum number of examples of a concept."""


@attrs.frozen(kw_only=True, field_transformer=strict)
class Example:
    """A positive or negative example of a concept.

    Args:
        path: original path of the image, for display.
        sha256: SHA-256 of the file's content.
        time: time of a video frame, in seconds; None for an image.
        is_positive: whether the image is a positive example.
    """

    path: str
    sha256: str
    time: float | None = None
    is_positive: bool

    @property
    def key(self) -> Key:
        """Identity of the example's image, see `Key`."""
        return self.sha256, self.time

    @property
    def name(self) -> str:
        """The path, followed by the time of a video frame."""
        return self.path if self.time is None else f"{self.path} {format_time(self.time)}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Known:
    """The stored fields of a concept, except for name and examples."""

    text: str
    about: IndexMetadata
    uses_examples: bool


@attrs.frozen(kw_only=True, eq=False)
class Concept:
    """A user-defined concept: a text with example images.

    Shape:
        vectors: `(examples, dim)`, float16.

    Args:
        name: name of the concept, `@"name"` in a query.
        text: description of the concept; without examples, only this text determines the score.
        about: metadata of the index, including the model that computed `vectors`.
        uses_examples: whether the examples add to the score, see `examples_help`.
        examples: positive and negative examples.
        vectors: embeddings of the examples, of unit length.
        images: small encoded copy of each example, for encoding by another model; None for an unreadable image.
    """

    name: str
    text: str
    about: IndexMetadata
    uses_examples: bool = False
    examples: tuple[Example, ...] = ()
    vectors: NDArray[np.float16]
    images: tuple[bytes | None, ...] = ()

    def embeddings(self, *, is_positive: bool) -> NDArray[np.float32]:
        """Return the embeddings of the positive or the negative examples."""
        return self.vectors[[one.is_positive == is_positive for one in self.examples]].astype(np.float32)

    def is_same(self, other: Concept) -> bool:
        """Return whether two concepts have equal texts, examples and embedding spaces."""
        return self.about == other.about and self.examples == other.examples and self.text == other.text

    def chosen(self, kept: Sequence[bool]) -> Concept:
        """Return the concept with a subset of its examples, selected by one boolean per example."""
        indices = [index for index, is_kept in enumerate(kept) if is_kept]
        return attrs.evolve(
            self,
            examples=tuple(self.examples[index] for index in indices),
            vectors=self.vectors[indices],
            images=tuple(self.images[index] for index in indices),
        )

    def to_dict(self) -> dict[str, object]:
        """Return the name, text and example names of the concept, for JSON."""
        names = {word: [one.name for one in self.examples if one.is_positive == kind] for word, kind in _KINDS.items()}
        return {"name": self.name, "text": self.text, "uses_examples": self.uses_examples, **names}


_KINDS = {"yes": True, "no": False}


def read_concepts(folder: Path, name: str | None = None) -> dict[str, Concept]:
    """Return the concepts of an index by name, sorted; with `name`, only the concept with this name, if any.

    Raises:
        ValueError: if the index is damaged, or comes from another version of this library.
        OSError: if the index cannot be read.
    """
    with read_transaction(folder) as db:
        return {one.name: one for one in _found(db, folder, name)}


def change_concept(folder: Path, name: str, changed: Callable[[Concept | None], Concept | None]) -> Concept | None:
    """Replace a concept by the result of a function, in one transaction.

    Args:
        folder: folder of the index.
        name: name of the concept.
        changed: function from the old to the new concept; None means no concept.

    Raises:
        ValueError: if the index is damaged.
        OSError: if the index cannot be written.
    """
    with write_transaction(folder, renew=False) as db:
        after = changed(next(_found(db, folder, name), None))
        db.execute("DELETE FROM concepts WHERE name = ?", (name,))
        db.execute("DELETE FROM examples WHERE concept = ?", (name,))
        if after is not None:
            known = _Known(text=after.text, about=after.about, uses_examples=after.uses_examples)
            db.execute("INSERT INTO concepts VALUES (?, ?)", (name, to_json(known)))
            rows = zip(after.examples, after.vectors, after.images, strict=True)
            db.executemany(
                "INSERT INTO examples VALUES (?, ?, ?, ?, ?)",
                (
                    (name, number, to_json(example), np.asarray(vector, np.float16).tobytes(), image)
                    for number, (example, vector, image) in enumerate(rows)
                ),
            )
    return after


def _found(db: sqlite3.Connection, folder: Path, name: str | None) -> Iterator[Concept]:
    text = "SELECT name, known FROM concepts WHERE ?1 IS NULL OR name = ?1 ORDER BY name"
    examples = "SELECT known, embedding, image FROM examples WHERE concept = ? ORDER BY number"
    for found, known in db.execute(text, (name,)).fetchall():
        rows = db.execute(examples, (found,)).fetchall()
        try:
            told = from_json(known, _Known)
            given = tuple(from_json(example, Example) for example, _, _ in rows)
            vectors = np.frombuffer(b"".join(vector for _, vector, _ in rows), np.float16)
            vectors = vectors.reshape(len(rows), told.about.dim)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{folder / INDEX} is damaged, or of another version of this library (concept {found!r}: {error}); "
                f"remove the concept: `mobileclip concept rm '{found}' --index {folder}`"
            ) from None
        yield Concept(
            name=found,
            text=told.text,
            about=told.about,
            uses_examples=told.uses_examples,
            examples=given,
            vectors=vectors,
            images=tuple(row[2] for row in rows),
        )


def indices_of(snapshot: Snapshot, examples: Iterable[Example]) -> dict[Key, int]:
    """Return the positions of examples in a snapshot, by key; skip examples that the snapshot lacks."""
    assert snapshot.store is not None, "only the snapshot of an index has examples"
    ids, found = snapshot.ids, ids_of(snapshot.store.folder, [one.key for one in examples])
    indices = {key: int(np.searchsorted(ids, number)) for key, number in found.items()}
    return {key: index for key, index in indices.items() if index < len(ids) and ids[index] == found[key]}


def ids_of(folder: Path, keys: Iterable[Key]) -> dict[Key, int]:
    """Return the lowest row id for each key.

    Args:
        folder: folder of the index.
        keys: keys of images; the function ignores unknown keys.
    """
    wanted = set(keys)
    text = """SELECT id, sha256, time FROM present
    WHERE problem IS NULL AND sha256 IN (SELECT value FROM json_each(?)) ORDER BY id DESC"""
    with read_transaction(folder) as db:
        rows = db.execute(text, (json.dumps([sha256 for sha256, _ in wanted]),)).fetchall()
    return {(sha256, time): number for number, sha256, time in rows if (sha256, time) in wanted}


ALPHA, BETA = 1.0, 5.5

# A single example cannot be held out: the text alone suffices if it ranks the example among the first five.
_FOUND = 5
# Maximum number of examples to hold out.
_HELD_BACK = 20
_NAMED = re.compile('@["\u201c\u201d]([^"\u201c\u201d]+)["\u201c\u201d]')

Matrix = NDArray[np.float32]


@attrs.frozen(kw_only=True, eq=False)
class Cache:
    """Embeddings of examples with their weights (Tip-Adapter's cache).

    Shape:
        vectors: `(examples, dim)`; weights: `(examples,)`.

    Args:
        vectors: embeddings of unit length.
        weights: weights of the examples; a positive weight raises the score.
    """

    vectors: Matrix
    weights: Matrix

    @classmethod
    def of(cls, yes: Matrix, no: Matrix, *, weight: float = 1.0) -> Cache:
        """Build the cache from positive and negative examples.

        Args:
            yes: embeddings of positive examples.
            no: embeddings of negative examples.
            weight: factor for the weights of all examples.
        """
        signs = np.repeat(np.array([ALPHA, -ALPHA], np.float32), (len(yes), len(no)))
        return cls(vectors=np.concatenate([yes, no]), weights=weight * signs)

    def scores(self, vectors: Vectors | Matrix) -> Matrix:
        """Return the term that the examples add to each image's score.

        Shape:
            vectors: `(images, dim)`; returns `(images,)`.
        """
        scores = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), BLOCK):
            similar = cosines(vectors[start : start + BLOCK], self.vectors)
            scores[start : start + BLOCK] = np.exp(BETA * (similar - 1)) @ self.weights
        return scores


@attrs.frozen(kw_only=True, eq=False)
class QueryConcepts:
    """A query's concepts that use examples, with a weight for each concept.

    Args:
        concepts: pairs of concept and weight; the weight of an excluded concept is negative.
    """

    concepts: tuple[tuple[Concept, float], ...]

    @classmethod
    def of(
        cls, wanted: Sequence[Concept], without: Sequence[Concept], *, num_wanted: int, share: float
    ) -> QueryConcepts:
        """Select the concepts that use examples, and compute the weight of each concept.

        Args:
            wanted: concepts to search for.
            without: concepts to exclude.
            num_wanted: number of texts, images and concepts whose embeddings the query averages.
            share: absolute value of the (negative) weight of each excluded concept.
        """
        weighed = [(one, 1 / num_wanted) for one in wanted] + [(one, -share) for one in without]
        return cls(concepts=tuple((one, weight) for one, weight in weighed if one.uses_examples))

    def cache(self) -> Cache | None:
        """Return one cache of all concepts' examples; None if no concept uses examples."""
        caches = [
            Cache.of(one.embeddings(is_positive=True), one.embeddings(is_positive=False), weight=weight)
            for one, weight in self.concepts
        ]
        if not caches:
            return None
        vectors, weighed = (
            np.concatenate(several) for several in zip(*((c.vectors, c.weights) for c in caches), strict=True)
        )
        return Cache(vectors=vectors, weights=weighed)


def nearest_with_concepts(
    vectors: Vectors, indices: NDArray[np.int64] | None, query: Matrix, cache: Cache, k: int
) -> Found:
    """Return the images with the highest scores, by exact search.

    Args:
        vectors: embeddings of the collection, of unit length.
        indices: positions of the images to search; None for all images.
        query: query embedding, of shape (dim,).
        cache: embeddings and weights of the query's examples.
        k: maximum number of images.
    """
    indices = np.arange(len(vectors)) if indices is None else indices
    some = vectors if len(indices) == len(vectors) else vectors[indices]
    scores = cosines(some, query[None])[:, 0] + cache.scores(some)
    best = np.argsort(-scores, kind="stable")[:k]
    return indices[best], scores[best]


def examples_help(vectors: Vectors, text: Matrix, yes: Matrix, no: Matrix, own: Sequence[int]) -> bool:
    """Return whether the examples rank held-out examples better than the text alone does (leave-one-out).

    The criterion is the mean log rank among the images of the collection. A single example helps if the text alone
    ranks the example below the first five images.

    Args:
        vectors: embeddings of the collection, of shape (images, dim).
        text: embedding of the text, of shape (dim,).
        yes: embeddings of positive examples.
        no: embeddings of negative examples.
        own: positions of the examples in the collection, excluded from the ranking.
    """
    if not len(yes):
        return False
    scores, held = cosines(vectors, text[None])[:, 0], yes @ text
    scores[np.asarray(own, np.int64)] = -np.inf
    alone = [_rank(scores, one) for one in held]
    if len(yes) == 1:
        return alone[0] >= _FOUND
    # The contribution of each held-out example is subtracted from the sum over all examples.
    rest, learned = scores + Cache.of(yes, no).scores(vectors), []
    chosen = np.unique(np.linspace(0, len(yes) - 1, min(len(yes), _HELD_BACK)).astype(np.int64))
    shares = ALPHA * np.exp(BETA * (cosines(vectors, yes[chosen]) - 1))
    for share, index in zip(shares.T, chosen, strict=True):
        others = Cache.of(np.delete(yes, index, axis=0), no)
        learned.append(_rank(rest - share, held[index] + others.scores(yes[[index]])[0]))
    alone = [alone[index] for index in chosen]
    return float(np.mean(np.log1p(learned))) < float(np.mean(np.log1p(alone)))


def named_concepts(text: str) -> tuple[str, list[str]]:
    """Split a query into its remaining text and the names of its concepts.

    Examples:
        >>> named_concepts('@"my bike" in snow')
        ('in snow', ['my bike'])
    """
    return " ".join(_NAMED.sub(" ", text).split()) if _NAMED.search(text) else text, _NAMED.findall(text)


def _rank(scores: Matrix, score: float) -> int:
    """Return the number of images with a score above `score`."""
    return int(np.count_nonzero(scores > score))

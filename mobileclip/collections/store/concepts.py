"""Concepts of an index: a name, its text and examples with their embeddings, a row each, written whole or not at all.

They stand beside the rows of pictures, so that any process changes them without holding the index.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.collections.store.about import About
from mobileclip.collections.store.database import INDEX, changing, reading
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

Key = tuple[str, float | None]
"""What a picture is known by, wherever it lies: the hash of its content, and the time of a video's frame."""

MOST_EXAMPLES = 200
"""Of a concept."""



@attrs.frozen(kw_only=True, field_transformer=strict)
class Example:
    """A picture that shows a concept, or does not.

    Args:
        path: where it was when it was given, for people.
        sha256: of its content.
        time: of a video's frame, in seconds.
        is_yes: whether it shows the concept.
    """

    path: str
    sha256: str
    time: float | None = None
    is_yes: bool

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.sha256, self.time


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Known:
    """What is kept of a concept beside its name and its embeddings."""

    text: str
    about: About
    uses_examples: bool
    examples: tuple[Example, ...]


@attrs.frozen(kw_only=True, eq=False)
class Concept:
    """What a person calls by a name of their own.

    Shape:
        vectors: `(examples, dim)`, float16.

    Args:
        name: as `@"name"` in a query has it.
        text: what it is in words, its score without examples.
        about: whose space the embeddings are in.
        uses_examples: whether examples add to the score; where they would not help, the text stands alone.
        examples: those that show it and those that do not.
        vectors: their embeddings, of unit length.
    """

    name: str
    text: str
    about: About
    uses_examples: bool = False
    examples: tuple[Example, ...] = ()
    vectors: NDArray[np.float16]

    def of(self, *, is_yes: bool) -> NDArray[np.float32]:
        """Return the embeddings of the examples that show it, or of those that do not."""
        return self.vectors[[one.is_yes == is_yes for one in self.examples]].astype(np.float32)

    def is_same(self, other: Concept) -> bool:
        """Return whether another one is the same, in the same space."""
        return self.about == other.about and self.examples == other.examples and self.text == other.text

    def described(self) -> dict[str, object]:
        """Return what is known of it, as JSON has it."""
        paths = {word: [one.path for one in self.examples if one.is_yes == kind] for word, kind in _KINDS.items()}
        return {"name": self.name, "text": self.text, "uses_examples": self.uses_examples, **paths}


_KINDS = {"yes": True, "no": False}


def read_concepts(folder: Path, name: str | None = None) -> dict[str, Concept]:
    """Return the concepts of an index by their names, sorted; of one name, that one or none.

    Raises:
        ValueError: if the index is damaged, or of a later version of this library.
        OSError: if it cannot be read.
    """
    with reading(folder) as db:
        return {one.name: one for one in _found(db, folder, name)}


def change_concept(folder: Path, name: str, changed: Callable[[Concept | None], Concept | None]) -> Concept | None:
    """Put what a function makes of a concept in its place, all of it or nothing; no other process comes between.

    Args:
        folder: of the index.
        name: of the concept.
        changed: gets what is there, and returns what is to be; None for nothing.

    Raises:
        ValueError: if the index is damaged.
        OSError: if it cannot be written.
    """
    with changing(folder, count=False) as db:
        after = changed(next(_found(db, folder, name), None))
        db.execute("DELETE FROM concepts WHERE name = ?", (name,))
        if after is not None:
            known = _Known(
                text=after.text, about=after.about, uses_examples=after.uses_examples, examples=after.examples
            )
            embeddings = np.ascontiguousarray(after.vectors, np.float16).tobytes()
            db.execute("INSERT INTO concepts VALUES (?, ?, ?)", (name, to_json(known), embeddings))
    return after


def places_of(snapshot: Snapshot, examples: Iterable[Example]) -> dict[Key, int]:
    """Return where examples are in an index as it was read, of those that are there."""
    assert snapshot.store is not None, "examples are asked of an index"
    ids, found = snapshot.ids, ids_of(snapshot.store.folder, [one.key for one in examples])
    places = {key: int(np.searchsorted(ids, number)) for key, number in found.items()}
    return {key: place for key, place in places.items() if place < len(ids) and ids[place] == found[key]}


def ids_of(folder: Path, keys: Iterable[Key]) -> dict[Key, int]:
    """Return the ids of the rows that have some content; of several with the same, the first.

    Args:
        folder: of the index.
        keys: of pictures; those that no row has are left out.
    """
    wanted = set(keys)
    text = """SELECT id, sha256, time FROM present
    WHERE problem IS NULL AND sha256 IN (SELECT value FROM json_each(?)) ORDER BY id DESC"""
    with reading(folder) as db:
        rows = db.execute(text, (json.dumps([sha256 for sha256, _ in wanted]),)).fetchall()
    return {(sha256, time): number for number, sha256, time in rows if (sha256, time) in wanted}


def _found(db: sqlite3.Connection, folder: Path, name: str | None) -> Iterator[Concept]:
    text = "SELECT name, known, embeddings FROM concepts WHERE ?1 IS NULL OR name = ?1 ORDER BY name"
    for found, known, embeddings in db.execute(text, (name,)).fetchall():
        try:
            told = from_json(known, _Known)
            vectors = np.frombuffer(embeddings, np.float16).reshape(len(told.examples), told.about.dim)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{folder / INDEX} is damaged, or of another version of this library: the concept {found!r}: {error}; "
                f"remove it: `mobileclip concept rm {folder} '{found}'`"
            ) from None
        yield Concept(
            name=found,
            text=told.text,
            about=told.about,
            uses_examples=told.uses_examples,
            examples=told.examples,
            vectors=vectors,
        )

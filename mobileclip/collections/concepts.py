"""Concepts of an index: named, taught by examples, and searched for as `@"name"`."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.opened import OpenedIndex
from mobileclip.collections.reading.anew import encode_examples
from mobileclip.collections.searching.learned import examples_help
from mobileclip.collections.searching.queries import embedding_of
from mobileclip.collections.store.concepts import (
    MOST_EXAMPLES,
    Concept,
    Example,
    Key,
    change_concept,
    places_of,
    read_concepts,
)
from mobileclip.data.images.opening import read_image_file
from mobileclip.data.images.transform import LIMITS
from mobileclip.registry import nearest
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

Given = str | Path | int
"""An example as it is given: the path of a picture, or the id of one in the index."""

_LONGEST_NAME = 100
_LONGEST_TEXT = 1000

_Embedded = tuple[Example, NDArray[np.floating]]


class Concepts(Mapping[str, Concept]):
    """The concepts of an index by their names, read whenever they are asked for: other processes add to them.

    A concept is a text and examples. Those that show it draw what is like them, and those that do not push it away,
    see `mobileclip.collections.searching.learned`. Where examples that are held back are not found better than by the
    text alone, the text stands alone, and the examples are kept.

    Args:
        index: that has them.
    """

    def __init__(self, index: OpenedIndex) -> None:
        self._index = index
        self._outside: dict[Key, NDArray[np.floating]] = {}

    def __iter__(self) -> Iterator[str]:
        """Return the names, sorted."""
        return iter(read_concepts(self._index.path))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(read_concepts(self._index.path))

    def __getitem__(self, name: str) -> Concept:
        """Return a concept in the space of the index.

        Raises:
            KeyError: if there is none of this name.
            ValueError: see `require`.
        """
        found = read_concepts(self._index.path, normal(name)).get(normal(name))
        if found is None:
            raise KeyError(name)
        return self._kept(found)

    def require(self, name: str) -> Concept:
        """Return a concept in the space of the index.

        Of an index that was brought to another model, a concept follows where its examples are in the index, or can be
        read where they were.

        Raises:
            ValueError: if there is none of this name, or it cannot follow.
        """
        try:
            return self[name]
        except KeyError:
            others = list(self)
            hint = (
                nearest(normal(name), others)
                if others
                else f'add it: `mobileclip concept add {self._index.path} "{name}"`'
            )
            raise ValueError(f"there is no concept {storage.printable(name)!r}; {hint}") from None

    def add(
        self,
        name: str,
        *,
        yes: Sequence[Given] = (),
        no: Sequence[Given] = (),
        neither: Sequence[Given] = (),
        text: str | None = None,
    ) -> Concept:
        """Add a concept, or examples to one that is there, and return it; all of it is written, or nothing.

        A picture that is in the index has its embedding there, and another is encoded, once.

        Args:
            name: of the concept, without quotation marks.
            yes: pictures that show it: paths, or ids of the index.
            no: pictures that do not.
            neither: pictures that are no examples any more.
            text: what it is in words; by default what it was, and the name of a new one.

        Raises:
            ValueError: if the name or the text is none, or a picture is not in the index.
            ImageError: if a picture cannot be read.
            OSError: if the index cannot be written.
        """
        name = _required(normal(name), _LONGEST_NAME, "name")
        text = text and _required(text.strip(), _LONGEST_TEXT, "text")
        self._index.load()  # before anything is held, and so are examples outside the index
        for known in read_concepts(self._index.path, name).values():
            self._embeddings(known)
        given = [self._embedded(one, is_yes=kind) for some, kind in ((no, False), (yes, True)) for one in some]
        dropped = {self._embedded(one, is_yes=False)[0].key for one in neither if isinstance(one, int)}
        gone = {_place(one) for one in neither if not isinstance(one, int)}
        about = self._index.store.about

        def changed(before: Concept | None) -> Concept:
            held: dict[Key, _Embedded] = {}
            if before is not None:
                # Those that are given anew need not follow.
                replaced = dropped.union(one.key for one, _ in given)
                kept = [one.key not in replaced and one.path not in gone for one in before.examples]
                before = self._followed(_chosen(before, kept), decide=False)
                held = {one.key: (one, vector) for one, vector in zip(before.examples, before.vectors, strict=True)}
            held.update((one.key, (one, vector)) for one, vector in given)
            if len(held) > MOST_EXAMPLES:
                raise ValueError(
                    f"a concept has at most {MOST_EXAMPLES:,} examples, and {name!r} would have {len(held):,}"
                )
            vectors = np.array([vector for _, vector in held.values()], np.float16).reshape(-1, about.dim)
            told = text or (name if before is None else before.text)
            examples = tuple(one for one, _ in held.values())
            return self._decided(Concept(name=name, text=told, about=about, examples=examples, vectors=vectors))

        after = change_concept(self._index.path, name, changed)
        assert after is not None, "a concept was made"
        return after

    def remove(self, name: str) -> None:
        """Remove a concept.

        Raises:
            ValueError: if there is none of this name.
            OSError: if the index cannot be written.
        """
        if normal(name) not in read_concepts(self._index.path):
            self.require(name)
        change_concept(self._index.path, normal(name), lambda _: None)

    def follow(self) -> int:
        """Bring concepts to the space of an upgraded index, and return how many were in another; some stay, by name."""
        behind = [one for one in read_concepts(self._index.path).values() if not self._is_here(one)]
        for concept in behind:
            self._follow_or_stay(concept)
        return len(behind)

    def _follow_or_stay(self, concept: Concept) -> None:
        try:
            self._kept(concept)
        except ValueError as error:
            logger.warning("%s", error)

    def _kept(self, concept: Concept) -> Concept:
        """Return a concept in the space of the index, and write it down there where it was in another."""
        followed = self._followed(concept)
        if followed is not concept:
            try:
                change_concept(
                    self._index.path, concept.name, lambda now: followed if now and now.is_same(concept) else now
                )
            except OSError as error:  # of an index that cannot be written to
                logger.warning("a concept that was brought to another model is not kept: %s", error)
        return followed

    def _embedded(self, given: Given, *, is_yes: bool) -> _Embedded:
        """Return an example with its embedding, which is that of the index where it has one."""
        index, snapshot = self._index, self._index.snapshot
        if isinstance(given, int):
            place = snapshot.place(given)
            (row,) = snapshot.rows([place], ("path", "sha256", "time"))
            if row is None:
                raise ValueError(f"the index has no picture of the id {given}; search again, it may have been removed")
            return Example(**row, is_yes=is_yes), snapshot.vectors[place]
        path = storage.local_path(str(given))
        digest = hashlib.sha256(read_image_file(path, LIMITS, f"image {str(path)!r}")).hexdigest()
        example = Example(path=_place(given), sha256=digest, is_yes=is_yes)
        if (known := places_of(snapshot, [example]).get(example.key)) is not None:
            return example, snapshot.vectors[known]
        return example, embedding_of(index.clip, path, reduced=index.store.about.decode == "fast")

    def _is_here(self, concept: Concept) -> bool:
        return concept.about.identity.is_same(self._index.store.about.identity)

    def _embeddings(self, concept: Concept) -> dict[Key, NDArray[np.floating]]:
        """Return embeddings of examples in the space of the index: those that it has, and of files that can be read."""
        if self._is_here(concept):
            return {one.key: vector for one, vector in zip(concept.examples, concept.vectors, strict=True)}
        index = self._index
        places = places_of(index.snapshot, concept.examples)
        new = [one for one in concept.examples if one.key not in places and one.key not in self._outside]
        if new:
            self._outside |= encode_examples(new, index.clip, reduced=index.store.about.decode == "fast")
        return self._outside | {key: index.snapshot.vectors[place] for key, place in places.items()}

    def _followed(self, concept: Concept, *, decide: bool = True) -> Concept:
        """Return a concept in the space of the index; of another model, with the embeddings that it has there."""
        if self._is_here(concept):
            return concept
        about, known = self._index.store.about, self._embeddings(concept)
        missing = [one for one in concept.examples if one.key not in known]
        if missing:
            flags = " ".join(f"--{'yes' if one.is_yes else 'no'} {storage.printable(one.path)}" for one in missing)
            raise ValueError(
                f"the concept {concept.name!r} is of {concept.about.model}, and the index is of {about.model} now; "
                f"{len(missing):,} of its examples can be read no more: give them again: `mobileclip concept add "
                f'{self._index.path} "{concept.name}" {flags}`'
            )
        vectors = np.array([known[one.key] for one in concept.examples], np.float16).reshape(-1, about.dim)
        followed = attrs.evolve(concept, about=about, vectors=vectors)
        return self._decided(followed) if decide else followed

    def _decided(self, concept: Concept) -> Concept:
        """Return a concept with the decision whether its examples help."""
        snapshot = self._index.snapshot
        text = self._index.clip.encode_text([concept.text], keep=True).numpy()[0]
        own = list(places_of(snapshot, concept.examples).values())
        yes, no = concept.of(is_yes=True), concept.of(is_yes=False)
        return attrs.evolve(concept, uses_examples=examples_help(snapshot.vectors, text, yes, no, own))


def normal(name: str) -> str:
    """Return a name as it is kept: letters that look alike are one, and so are spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _required(given: str, longest: int, called: str) -> str:
    if not given or len(given) > longest or not given.isprintable() or any(mark in given for mark in '"\u201c\u201d'):
        raise ValueError(
            f"'{storage.printable(given, limit=longest)}' is no {called} of a concept; expected 1 to {longest:,} "
            "letters, without quotation marks"
        )
    return given


def _place(given: str | Path) -> str:
    return str(Path(storage.local_path(str(given))).absolute())


def _chosen(concept: Concept, kept: Sequence[bool]) -> Concept:
    """Return a concept with some of its examples."""
    examples = tuple(one for one, is_kept in zip(concept.examples, kept, strict=True) if is_kept)
    return attrs.evolve(concept, examples=examples, vectors=concept.vectors[np.array(kept, bool)])

"""Manages the concepts of an index: adds, removes and converts concepts, which queries name as `@"name"`."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.concepts import (
    MOST_EXAMPLES,
    Concept,
    Example,
    Key,
    change_concept,
    examples_help,
    indices_of,
    read_concepts,
)
from mobileclip.collections.images import small_copy, small_copy_of
from mobileclip.collections.queries import embedding_of
from mobileclip.collections.snapshot import Snapshot, match_of
from mobileclip.collections.store import Store
from mobileclip.data import LIMITS, read_image_file
from mobileclip.inference import ImageTextModel
from mobileclip.registry import nearest
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

Given = str | Path | int
"""An image given by the user: a path, or the id of an image in the index."""

_LONGEST_NAME = 200
_LONGEST_TEXT = 1000


class ConceptIndex(Protocol):
    """The part of a collection's interface that concepts need."""

    store: Store

    @property
    def path(self) -> Path:
        """The folder of the index."""

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot of the index."""

    @property
    def clip(self) -> ImageTextModel:
        """The model of the index."""


@attrs.frozen(eq=False)
class _Embedded:
    """An example with its embedding, and a small copy of its image, if possible."""

    example: Example
    vector: NDArray[np.floating]
    image: bytes | None


class Concepts(Mapping[str, Concept]):
    """The concepts of an index by name. Each access reads the index, since other processes may add concepts.

    Args:
        index: collection with images and model.
    """

    def __init__(self, index: ConceptIndex) -> None:
        self._index = index
        self._outside: dict[Key, NDArray[np.floating]] = {}

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the sorted names."""
        return iter(read_concepts(self._index.path))

    def __len__(self) -> int:
        """Return the number of concepts."""
        return len(read_concepts(self._index.path))

    def stored(self) -> dict[str, Concept]:
        """Return the stored concepts, possibly in the embedding space of an earlier model."""
        return read_concepts(self._index.path)

    def __getitem__(self, name: str) -> Concept:
        """Return a concept in the embedding space of the index.

        After an upgrade of the index to another model, the function converts the concept to the new model. The function
        keeps examples that are in the index or have a small copy, and drops all other examples with a warning.

        Raises:
            KeyError: if the concept does not exist.
        """
        found = read_concepts(self._index.path, normalize_name(name)).get(normalize_name(name))
        if found is None:
            raise KeyError(name)
        return self._kept(found)

    def require(self, name: str) -> Concept:
        """Return a concept in the embedding space of the index, see `__getitem__`.

        Raises:
            ValueError: if the concept does not exist.
        """
        try:
            return self[name]
        except KeyError:
            others = list(self)
            hint = (
                nearest(normalize_name(name), others)
                if others
                else f'add the concept: `mobileclip concept add "{name}" --index {self._index.path}`'
            )
            raise ValueError(f"there is no concept {storage.printable(name)!r}; {hint}") from None

    def add(
        self,
        name: str,
        *,
        positive: Sequence[Given] = (),
        negative: Sequence[Given] = (),
        unlabel: Sequence[Given] = (),
        text: str | None = None,
    ) -> Concept:
        """Add a concept, or examples to an existing concept, in one transaction; return the concept.

        Indexed images have stored embeddings; the function encodes all other images once. The index stores a small copy
        of each example.

        Args:
            name: name of the concept, without quotation marks.
            positive: positive examples, as paths, or as ids in the index.
            negative: negative examples, as paths, or as ids in the index.
            unlabel: examples to remove, as ids, paths or `Example.name`; the files need not exist.
            text: description of the concept; None to keep an existing description, or to use a new concept's name.

        Raises:
            ValueError: if the name or the text is invalid, an id is not in the index, an image to remove is not an
                example, or the concept would have more than `MOST_EXAMPLES` examples.
            ImageError: if an image cannot be read.
            OSError: if the index cannot be written.
        """
        name = _required(normalize_name(name), _LONGEST_NAME, "name")
        text = text and _required(text.strip(), _LONGEST_TEXT, "text")
        index = self._index
        # Reading the index and the model and encoding small copies happen before the transaction.
        snapshot, clip = index.snapshot, index.clip
        for known in read_concepts(index.path, name).values():
            self._embeddings(known)
        given = [
            self._embedded(one, is_positive=kind)
            for some, kind in ((negative, False), (positive, True))
            for one in some
        ]
        dropped = {_example(snapshot.row(one), is_positive=True).key for one in unlabel if isinstance(one, int)}
        named = [str(one) for one in unlabel if not isinstance(one, int)]
        about = index.store.about

        def changed(before: Concept | None) -> Concept:
            held: dict[Key, _Embedded] = {}
            if before is not None:
                gone = dropped | _named(before, named)
                kept = [one.key not in gone for one in before.examples]
                before = self._followed(before.chosen(kept), decide=False)
                held = {
                    one.key: _Embedded(one, vector, image)
                    for one, vector, image in zip(before.examples, before.vectors, before.images, strict=True)
                }
            held.update((one.example.key, one) for one in given)
            if len(held) > MOST_EXAMPLES:
                raise ValueError(
                    f"a concept has at most {MOST_EXAMPLES:,} examples, and {name!r} would have {len(held):,}"
                )
            vectors = np.array([one.vector for one in held.values()], np.float16).reshape(-1, about.dim)
            concept = Concept(
                name=name,
                text=text or (name if before is None else before.text),
                about=about,
                examples=tuple(one.example for one in held.values()),
                vectors=vectors,
                images=tuple(one.image for one in held.values()),
            )
            return _decided(concept, snapshot, clip)

        after = change_concept(index.path, name, changed)
        assert after is not None, "the function returns a concept"
        return after

    def remove(self, name: str) -> None:
        """Remove a concept.

        Raises:
            ValueError: if the concept does not exist.
            OSError: if the index cannot be written.
        """
        if normalize_name(name) not in read_concepts(self._index.path):
            self.require(name)
        change_concept(self._index.path, normalize_name(name), lambda _: None)

    def migrate(self) -> int:
        """Convert concepts to the embedding space of an upgraded index, and return the number of converted concepts."""
        behind = [one for one in read_concepts(self._index.path).values() if not self._is_here(one)]
        for concept in behind:
            self._kept(concept)
        return len(behind)

    def _kept(self, concept: Concept) -> Concept:
        """Return a concept in the embedding space of the index; after a conversion, store the concept."""
        followed = self._followed(concept)
        if followed is not concept:
            try:
                change_concept(
                    self._index.path, concept.name, lambda now: followed if now and now.is_same(concept) else now
                )
            except OSError as error:  # the index is read-only
                logger.warning("the index cannot store a concept after its conversion to another model: %s", error)
        return followed

    def _embedded(self, given: Given, *, is_positive: bool) -> _Embedded:
        """Return an example with its embedding, from the index if possible."""
        index, snapshot = self._index, self._index.snapshot
        if isinstance(given, int):
            row, vector = snapshot.row(given), snapshot.vectors[snapshot.index_of(given)]
            return _Embedded(_example(row, is_positive=is_positive), vector, small_copy_of(match_of(row, 1.0)))
        path = storage.local_path(str(given))
        data = read_image_file(path, LIMITS, f"image {str(path)!r}")
        digest = hashlib.sha256(data).hexdigest()
        example = Example(path=storage.absolute_path(given), sha256=digest, is_positive=is_positive)
        known = indices_of(snapshot, [example]).get(example.key)
        vector = (
            embedding_of(index.clip, data, reduced=index.store.about.decode == "fast")
            if known is None
            else snapshot.vectors[known]
        )
        return _Embedded(example, vector, small_copy(data))

    def _is_here(self, concept: Concept) -> bool:
        return concept.about.identity.is_same(self._index.store.about.identity)

    def _embeddings(self, concept: Concept) -> dict[Key, NDArray[np.floating]]:
        """Return the examples' embeddings in the index's space, read from the index or computed from small copies."""
        if self._is_here(concept):
            return {one.key: vector for one, vector in zip(concept.examples, concept.vectors, strict=True)}
        index, reduced = self._index, self._index.store.about.decode == "fast"
        indices = indices_of(index.snapshot, concept.examples)
        for one, image in zip(concept.examples, concept.images, strict=True):
            if one.key not in indices and one.key not in self._outside and image is not None:
                self._outside[one.key] = embedding_of(index.clip, image, reduced=reduced)
        return self._outside | {key: index.snapshot.vectors[position] for key, position in indices.items()}

    def _followed(self, concept: Concept, *, decide: bool = True) -> Concept:
        """Return a concept in the embedding space of the index; drop examples that have no embedding in this space."""
        if self._is_here(concept):
            return concept
        about, known = self._index.store.about, self._embeddings(concept)
        for one in concept.examples:
            if one.key not in known:
                logger.warning(
                    "%s is no longer an example of the concept %r: the index has neither the image nor a small copy",
                    storage.printable(one.name),
                    concept.name,
                )
        left = concept.chosen([one.key in known for one in concept.examples])
        vectors = np.array([known[one.key] for one in left.examples], np.float16).reshape(-1, about.dim)
        followed = attrs.evolve(left, about=about, vectors=vectors)
        return _decided(followed, self._index.snapshot, self._index.clip) if decide else followed


def _decided(concept: Concept, snapshot: Snapshot, clip: ImageTextModel) -> Concept:
    """Return a concept with `uses_examples` set by `examples_help`."""
    text = clip.encode_text([concept.text], keep=True).numpy()[0]
    own = list(indices_of(snapshot, concept.examples).values())
    yes, no = concept.embeddings(is_positive=True), concept.embeddings(is_positive=False)
    return attrs.evolve(concept, uses_examples=examples_help(snapshot.vectors, text, yes, no, own))


def _example(row: Mapping[str, Any], *, is_positive: bool) -> Example:
    return Example(path=row["path"], sha256=row["sha256"], time=row["time"], is_positive=is_positive)


def _named(concept: Concept, given: Sequence[str]) -> set[Key]:
    """Return the keys of the examples named by the user.

    Raises:
        ValueError: if a name is not an example of the concept.
    """
    found: set[Key] = set()
    for one in given:
        keys = {each.key for each in concept.examples if {one, storage.absolute_path(one)} & {each.path, each.name}}
        if not keys:
            raise ValueError(
                f"{storage.printable(one)} is not an example of the concept {concept.name!r}; list the examples: "
                f'`mobileclip concept show "{concept.name}"`'
            )
        found |= keys
    return found


def normalize_name(name: str) -> str:
    """Return a name with canonical Unicode normalisation (NFC) and single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _required(given: str, longest: int, called: str) -> str:
    if not given or len(given) > longest or not given.isprintable() or any(mark in given for mark in '"\u201c\u201d'):
        raise ValueError(
            f"'{storage.printable(given, limit=longest)}' is not a valid {called} of a concept; "
            f"expected 1 to {longest:,} printable characters, without quotation marks"
        )
    return given

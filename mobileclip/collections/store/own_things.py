"""What is a person's own in several indexes, concepts and the words of tags, as one index has it after a merge."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.collections.store.concepts import MOST_EXAMPLES, Concept, change_concept, read_concepts
from mobileclip.collections.store.words import MOST_WORDS, Words, read_words


@attrs.frozen(kw_only=True, eq=False)
class OwnThings:
    """Concepts and words, and where they are from.

    Args:
        folder: of the index, for messages.
        concepts: by their names.
        words: of tags.
    """

    folder: Path
    concepts: Mapping[str, Concept]
    words: Words | None

    @classmethod
    def of(cls, folder: Path) -> OwnThings:
        """Return those of an index.

        Raises:
            ValueError: if it is damaged.
            OSError: if it cannot be read.
        """
        return cls(folder=folder, concepts=read_concepts(folder), words=read_words(folder))

    def joined(self, other: OwnThings) -> OwnThings:
        """Return them with those of another index; a concept that one of them has stays as it is there.

        Args:
            other: of the same model.

        Raises:
            ValueError: if a concept of one name is two things in them, or their tags are made otherwise.
        """
        shared = self.concepts.keys() & other.concepts.keys()
        both = {name: joined_concept(self.concepts[name], other.concepts[name], other.folder) for name in shared}
        words = self.words or other.words
        if self.words is not None and other.words is not None:
            words = _joined_words(self.words, other.words, other.folder)
        return OwnThings(folder=other.folder, concepts={**self.concepts, **other.concepts, **both}, words=words)

    def write_concepts(self, folder: Path) -> None:
        """Write the concepts into an index, each whole or not at all, with what was added to it meanwhile.

        Raises:
            ValueError: if one has become another thing meanwhile.
            OSError: if they cannot be written.
        """
        for name, concept in self.concepts.items():
            change_concept(folder, name, partial(_added, concept, folder))


def _added(own: Concept, folder: Path, now: Concept | None) -> Concept:
    return own if now is None else joined_concept(now, own, folder)


def joined_concept(one: Concept, other: Concept, folder: Path) -> Concept:
    """Return a concept with the examples of both; they are used where they are in one.

    Args:
        one: of a name.
        other: of the same name.
        folder: of the index that has the other.

    Raises:
        ValueError: if it is not the same thing in both.
    """
    name = storage.printable(one.name)
    if one.text != other.text:
        raise ValueError(
            f"the concept {name!r} is '{storage.printable(one.text)}' in one index and "
            f"'{storage.printable(other.text)}' in {folder}; give it one text, or remove one of them: `mobileclip "
            f'concept add {folder} "{name}" --text TEXT`, `mobileclip concept rm {folder} "{name}"`'
        )
    if not one.about.identity.is_same(other.about.identity):
        raise ValueError(
            f"the concept {name!r} is of {one.about.model} in one index and of {other.about.model} in {folder}; bring "
            f'it to the model of its index: `mobileclip concept show {folder} "{name}"`, and the same of the other'
        )
    own = {example.key: example for example in one.examples}
    for example in other.examples:
        if example.key in own and own[example.key].is_yes != example.is_yes:
            path = storage.printable(example.path)
            raise ValueError(
                f"{path} shows the concept {name!r} in one index and does not in another; take it out of one: "
                f'`mobileclip concept add {folder} "{name}" --neither {path}`'
            )
    new = [place for place, example in enumerate(other.examples) if example.key not in own]
    examples = (*one.examples, *(other.examples[place] for place in new))
    if len(examples) > MOST_EXAMPLES:
        raise ValueError(
            f"a concept has at most {MOST_EXAMPLES:,} examples, and {name!r} would have {len(examples):,}; take some "
            f'out: `mobileclip concept add {folder} "{name}" --neither IMAGE`'
        )
    vectors = np.concatenate([one.vectors, other.vectors[new]])
    used = one.uses_examples or other.uses_examples
    return attrs.evolve(one, examples=examples, vectors=vectors, uses_examples=used)


def _joined_words(one: Words, other: Words, folder: Path) -> Words:
    """Return the words of both, with how their scores were spread before."""
    if (one.template, one.share) != (other.template, other.share):
        raise ValueError(
            f"the tags are made of '{storage.printable(one.template)}' for a share of {one.share:g} in one index and "
            f"of '{storage.printable(other.template)}' for {other.share:g} in {folder}; make them alike: "
            f'`mobileclip tag {folder} --template "{storage.printable(one.template)}" --share {one.share:g}`'
        )
    if not one.about.identity.is_same(other.about.identity):
        raise ValueError(
            f"the tags are of {one.about.model} in one index and of {other.about.model} in {folder}; write them anew "
            f"where they are of the model of before: `mobileclip tag {folder}`, and the same of the other"
        )
    known = {word.casefold() for word in one.words}
    new = [place for place, word in enumerate(other.words) if word.casefold() not in known]
    words = (*one.words, *(other.words[place] for place in new))
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"there would be {len(words):,} words of tags, expected {MOST_WORDS:,} at most; give one index fewer: "
            f"`mobileclip tag {folder} --vocabulary WORDS.txt`"
        )
    vectors, levels = (
        np.concatenate([own, theirs[new]]) for own, theirs in ((one.vectors, other.vectors), (one.levels, other.levels))
    )
    return attrs.evolve(one, words=words, vectors=vectors, levels=levels)

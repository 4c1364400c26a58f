"""Merges indexes of one model: rows by the digests of their content, and a person's concepts and tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.collections.concepts import MOST_EXAMPLES, Concept, change_concept, read_concepts
from mobileclip.collections.store import Row, Store
from mobileclip.collections.tags import MOST_WORDS, TagWords, read_tag_words
from mobileclip.progress import Progress
from mobileclip.terminal import console


@attrs.frozen(kw_only=True)
class MergeReport:
    """The report of a merge: rows copied, replaced and left.

    Args:
        num_copied: copied rows.
        num_replaced: replaced rows.
        num_left: skipped rows of known images.
    """

    num_copied: int = 0
    num_replaced: int = 0
    num_left: int = 0

    def __str__(self) -> str:
        """Say it in a line."""
        parts = [f"{self.num_copied:,} rows copied"]
        parts += [f"{self.num_replaced:,} older ones replaced"] if self.num_replaced else []
        parts += [f"{self.num_left:,} known already"] if self.num_left else []
        return ", ".join(parts)


_Key = tuple[str, str | None, str | None]
"""A picture or a video: path, part and digest; of what cannot be read, path and part alone."""


@attrs.define(eq=False)
class _Held:
    """What an index has of an image, or of a video.

    Args:
        owner: the index.
        state: when the file was last changed, and whether it was read to its end; of two indexes, the greater is kept.
        ids: ids of the rows.
    """

    owner: Store
    state: tuple[int, bool]
    ids: list[int]


def merge_stores(target: Store, sources: Sequence[Store], *, show_progress: bool = True) -> MergeReport:
    """Merge the rows of indexes into another, locked by the caller, in one transaction.

    Images of two indexes are equal if path, part and digest are equal. Of equal images, the latest rows stay; of a
    video, preferably those of a completely read one. Different images with one path (of two machines, for example) both
    stay. Rows of a readable file replace an unreadable one.

    Args:
        target: the index to write to.
        sources: the others, of the same model.
        show_progress: whether to show progress.

    Raises:
        ValueError: if an index is damaged, or changes meanwhile.
        OSError: if an index cannot be read or written.
    """
    all_held = [_held(store) for store in (target, *sources)]
    kept = _kept(all_held)
    removed = {number for one in all_held[0].values() for number in one.ids}
    removed.difference_update(*(one.ids for one in kept.values() if one.owner is target))
    chosen = [sorted(number for one in kept.values() if one.owner is store for number in one.ids) for store in sources]
    paths = {store.folder: {key[0] for key, one in kept.items() if one.owner is store} for store in sources}
    total = sum(map(len, chosen))
    with Progress("merging", total=total, unit="rows", console=console(shown=show_progress)) as bar:

        def rows() -> Iterator[Row]:
            for store, ids in zip(sources, chosen, strict=True):
                end = bar.done + len(ids)
                for row in store.rows(ids):
                    yield attrs.evolve(row, id=None)
                    bar.advance()
                if bar.done != end:
                    raise ValueError(f"{store.folder} was written to meanwhile; run this again when that is done")

        finished = {one.path: one for store in sources for one in store.finished if one.path in paths[store.folder]}
        target.append(
            rows(),
            removed=removed,
            finished=finished.values(),
            inputs=dict.fromkeys(path for store in sources for path in store.inputs),
        )
    target.compact()
    num_given = sum(len(one.ids) for held in all_held[1:] for one in held.values())
    return MergeReport(num_copied=total, num_replaced=len(removed), num_left=num_given - total)


def _kept(all_held: Sequence[Mapping[_Key, _Held]]) -> dict[_Key, _Held]:
    """Return the merged concepts of several indexes; of equal ones, the first."""
    kept: dict[_Key, _Held] = {}
    for held in all_held:
        kept.update((key, one) for key, one in held.items() if key not in kept or one.state > kept[key].state)
    latest: dict[tuple[str, str | None], int] = {}
    for (path, part, digest), one in kept.items():
        if digest is not None:
            latest[path, part] = max(one.state[0], latest.get((path, part), 0))
    return {key: one for key, one in kept.items() if key[2] is not None or one.state[0] > latest.get(key[:2], -1)}


def _held(store: Store) -> dict[_Key, _Held]:
    """Return the content of an index."""
    finished = {one.path for one in store.finished}
    held: dict[_Key, _Held] = {}
    columns = ("id", "path", "part", "sha256", "mtime_ns", "problem")
    for number, path, part, sha256, mtime_ns, problem in store.values(*columns):
        state = (mtime_ns, path in finished)
        one = held.setdefault((path, part, sha256 if problem is None else None), _Held(store, state, []))
        one.state = max(one.state, state)
        one.ids.append(number)
    return held


@attrs.frozen(kw_only=True, eq=False)
class ConceptsAndWords:
    """A person's concepts and words of tags, and the indexes that they are from.

    Args:
        concepts: by their names, each with the folder of its index.
        words: of tags, with the folder of their index.
    """

    concepts: Mapping[str, tuple[Concept, Path]]
    words: tuple[TagWords, Path] | None

    @classmethod
    def of(cls, folder: Path) -> ConceptsAndWords:
        """Return the concepts and tags of an index.

        Raises:
            ValueError: if it is damaged.
            OSError: if it cannot be read.
        """
        words = read_tag_words(folder)
        concepts = {name: (concept, folder) for name, concept in read_concepts(folder).items()}
        return cls(concepts=concepts, words=None if words is None else (words, folder))

    def joined(self, other: ConceptsAndWords) -> ConceptsAndWords:
        """Merge with the concepts and tags of another index; other concepts stay unchanged.

        Args:
            other: of the same model.

        Raises:
            ValueError: if concepts or tags conflict.
        """
        shared = self.concepts.keys() & other.concepts.keys()
        both = {
            name: (merge_concepts(*self.concepts[name], *other.concepts[name]), self.concepts[name][1])
            for name in shared
        }
        words = self.words or other.words
        if self.words is not None and other.words is not None:
            words = _joined_words(*self.words, *other.words), self.words[1]
        return ConceptsAndWords(concepts={**self.concepts, **other.concepts, **both}, words=words)

    def write_concepts(self, folder: Path) -> None:
        """Write the concepts into an index, each atomically, merged with concurrent changes.

        Raises:
            ValueError: if one has become another thing meanwhile.
            OSError: if they cannot be written.
        """

        def added(concept: Concept, source: Path, now: Concept | None) -> Concept:
            return concept if now is None else merge_concepts(now, folder, concept, source)

        for name, (concept, source) in self.concepts.items():
            change_concept(folder, name, partial(added, concept, source))


def merge_concepts(one: Concept, here: Path, other: Concept, there: Path) -> Concept:
    """Return a concept with the examples of both; it uses them if either concept does.

    Args:
        one: one of a name.
        here: the folder of its index.
        other: of the same name.
        there: the folder of the other's index.

    Raises:
        ValueError: if it is not the same thing in both.
    """
    name = storage.printable(one.name)
    if one.text != other.text:
        raise ValueError(
            f"the concept {name!r} is '{storage.printable(one.text)}' in {here} and '{storage.printable(other.text)}' "
            f'in {there}; give it one text, or remove one: `mobileclip concept add "{name}" --text TEXT --index '
            f'{there}`, `mobileclip concept rm "{name}" --index {there}`'
        )
    if not one.about.identity.is_same(other.about.identity):
        raise ValueError(
            f"the concept {name!r} is of {one.about.model} in {here} and of {other.about.model} in {there}; bring both "
            f'to the model of their index: `mobileclip concept show "{name}" --index {here}`, and the same of {there}'
        )
    own = {example.key: example for example in one.examples}
    for example in other.examples:
        if example.key in own and own[example.key].is_positive != example.is_positive:
            path = storage.printable(example.name)
            yes, no = (here, there) if own[example.key].is_positive else (there, here)
            raise ValueError(
                f"{path} shows the concept {name!r} in {yes} and does not in {no}; take it out of one: "
                f'`mobileclip concept add "{name}" --unlabel {path} --index {there}`'
            )
    new = [place for place, example in enumerate(other.examples) if example.key not in own]
    examples = (*one.examples, *(other.examples[place] for place in new))
    if len(examples) > MOST_EXAMPLES:
        raise ValueError(
            f"a concept has at most {MOST_EXAMPLES:,} examples, and {name!r} of {here} and {there} would have "
            f'{len(examples):,}; take some out: `mobileclip concept add "{name}" --unlabel IMAGE --index {there}`'
        )
    vectors = np.concatenate([one.vectors, other.vectors[new]])
    pictures = (*one.pictures, *(other.pictures[place] for place in new))
    used = one.uses_examples or other.uses_examples
    return attrs.evolve(one, examples=examples, vectors=vectors, pictures=pictures, uses_examples=used)


def _joined_words(one: TagWords, here: Path, other: TagWords, there: Path) -> TagWords:
    """Return the words of both, with how their scores were spread before."""
    if (one.template, one.share) != (other.template, other.share):
        raise ValueError(
            f"the tags are made of '{storage.printable(one.template)}' for a share of {one.share:g} in {here} and of "
            f"'{storage.printable(other.template)}' for {other.share:g} in {there}; make them alike: `mobileclip tag "
            f'--template "{storage.printable(one.template)}" --share {one.share:g} --index {there}`'
        )
    if not one.about.identity.is_same(other.about.identity):
        raise ValueError(
            f"the tags are of {one.about.model} in {here} and of {other.about.model} in {there}; write those of the "
            f"former model again: `mobileclip tag --index {here}`, or the same of {there}"
        )
    known = {word.casefold() for word in one.words}
    new = [place for place, word in enumerate(other.words) if word.casefold() not in known]
    words = (*one.words, *(other.words[place] for place in new))
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"the tags of {here} and {there} would have {len(words):,} words, expected {MOST_WORDS:,} at most; give "
            f"one index fewer: `mobileclip tag --vocabulary WORDS.txt --index {there}`"
        )
    vectors, levels = (
        np.concatenate([own, theirs[new]]) for own, theirs in ((one.vectors, other.vectors), (one.levels, other.levels))
    )
    return attrs.evolve(one, words=words, vectors=vectors, levels=levels)

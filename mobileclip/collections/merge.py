"""Merges the rows, concepts and tags of indexes with the same model; compares images by digest."""

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
    """The report of a merge: numbers of copied, replaced and skipped rows.

    Args:
        num_copied: number of copied rows.
        num_replaced: number of replaced rows.
        num_left: number of skipped rows, whose images another index already has.
    """

    num_copied: int = 0
    num_replaced: int = 0
    num_left: int = 0

    def __str__(self) -> str:
        """Return the report as one line."""
        parts = [f"{self.num_copied:,} rows copied"]
        parts += [f"{self.num_replaced:,} older rows replaced"] if self.num_replaced else []
        parts += [f"{self.num_left:,} duplicate rows skipped"] if self.num_left else []
        return ", ".join(parts)


_Key = tuple[str, str | None, str | None]
"""Key of an image or video: path, part, and SHA-256 (None for an unreadable file)."""


@attrs.define(eq=False)
class _Held:
    """The rows of an image or a video in an index.

    Args:
        owner: index that has the rows.
        state: modification time of the file, and whether the file was read completely; the merge keeps the rows
            with the greater state.
        ids: ids of the rows.
    """

    owner: Store
    state: tuple[int, bool]
    ids: list[int]


def merge_stores(target: Store, sources: Sequence[Store], *, show_progress: bool = True) -> MergeReport:
    """Merge the rows of indexes into a target index, in one transaction; the caller must lock the target index.

    Images of two indexes are equal if their paths, parts and digests are equal. Of equal images, the merge keeps the
    rows with the latest modification time; if the times are equal, it prefers the rows of a completely read file. The
    merge keeps different images with the same path (from two machines, for example). Rows of a readable file replace
    an older row of the same path that marks the file as unreadable.

    Args:
        target: index to write to.
        sources: indexes to merge, with the same model.
        show_progress: whether to show progress.

    Raises:
        ValueError: if an index is damaged, or changes during the merge.
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
                    raise ValueError(
                        f"another job changed {store.folder} during the merge; merge again after that job has ended"
                    )

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
    """Return the rows with the greatest state for each image or video; of equal states, the rows of the first index."""
    kept: dict[_Key, _Held] = {}
    for held in all_held:
        kept.update((key, one) for key, one in held.items() if key not in kept or one.state > kept[key].state)
    latest: dict[tuple[str, str | None], int] = {}
    for (path, part, digest), one in kept.items():
        if digest is not None:
            latest[path, part] = max(one.state[0], latest.get((path, part), 0))
    return {key: one for key, one in kept.items() if key[2] is not None or one.state[0] > latest.get(key[:2], -1)}


def _held(store: Store) -> dict[_Key, _Held]:
    """Return the images and videos of an index, with their rows."""
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
class MergedConcepts:
    """The user's concepts and tag words, with the folders of their indexes.

    Args:
        concepts: concepts by name, each with the folder of its index.
        words: tag words, with the folder of their index; None if no index has tag words.
    """

    concepts: Mapping[str, tuple[Concept, Path]]
    words: tuple[TagWords, Path] | None

    @classmethod
    def of(cls, folder: Path) -> MergedConcepts:
        """Return the concepts and tags of an index.

        Raises:
            ValueError: if the index is damaged.
            OSError: if the index cannot be read.
        """
        words = read_tag_words(folder)
        concepts = {name: (concept, folder) for name, concept in read_concepts(folder).items()}
        return cls(concepts=concepts, words=None if words is None else (words, folder))

    def joined(self, other: MergedConcepts) -> MergedConcepts:
        """Merge with the concepts and tags of another index; concepts that only one index has stay unchanged.

        Args:
            other: concepts and tags of the other index, with the same model.

        Raises:
            ValueError: if concepts of the same name conflict, see `merge_concepts`, or the tags have different
                settings or too many words.
        """
        shared = self.concepts.keys() & other.concepts.keys()
        both = {
            name: (merge_concepts(*self.concepts[name], *other.concepts[name]), self.concepts[name][1])
            for name in shared
        }
        words = self.words or other.words
        if self.words is not None and other.words is not None:
            words = _joined_words(*self.words, *other.words), self.words[1]
        return MergedConcepts(concepts={**self.concepts, **other.concepts, **both}, words=words)

    def write_concepts(self, folder: Path) -> None:
        """Write each concept to an index in a separate transaction, merged with changes by other processes.

        Raises:
            ValueError: if a change by another process conflicts with a concept.
            OSError: if the concepts cannot be written.
        """

        def added(concept: Concept, source: Path, now: Concept | None) -> Concept:
            return concept if now is None else merge_concepts(now, folder, concept, source)

        for name, (concept, source) in self.concepts.items():
            change_concept(folder, name, partial(added, concept, source))


def merge_concepts(one: Concept, here: Path, other: Concept, there: Path) -> Concept:
    """Return a concept with the examples of two concepts; the result uses examples if either concept does.

    Args:
        one: the first concept.
        here: folder of the first concept's index, for error messages.
        other: the second concept, with the same name.
        there: folder of the second concept's index, for error messages.

    Raises:
        ValueError: if the texts or models differ, an image is a positive example of one concept and a negative example
            of the other, or the concepts have too many examples.
    """
    name = storage.printable(one.name)
    if one.text != other.text:
        raise ValueError(
            f"the concept {name!r} has the text '{storage.printable(one.text)}' in {here} and "
            f"'{storage.printable(other.text)}' in {there}; use the same text, or remove one concept: "
            f'`mobileclip concept add "{name}" --text TEXT --index {there}`, '
            f'`mobileclip concept rm "{name}" --index {there}`'
        )
    if not one.about.identity.is_same(other.about.identity):
        raise ValueError(
            f"the concept {name!r} has the model {one.about.model} in {here} and {other.about.model} in {there}; "
            f"convert both concepts to the models of their indexes: "
            f'`mobileclip concept show "{name}" --index {here}`, and the same command with --index {there}'
        )
    own = {example.key: example for example in one.examples}
    for example in other.examples:
        if example.key in own and own[example.key].is_positive != example.is_positive:
            path = storage.printable(example.name)
            yes, no = (here, there) if own[example.key].is_positive else (there, here)
            raise ValueError(
                f"{path} is a positive example of {name!r} in {yes} but a negative example in {no}; remove an example: "
                f'`mobileclip concept add "{name}" --unlabel {path} --index {there}`'
            )
    new = [index for index, example in enumerate(other.examples) if example.key not in own]
    examples = (*one.examples, *(other.examples[index] for index in new))
    if len(examples) > MOST_EXAMPLES:
        raise ValueError(
            f"a concept has at most {MOST_EXAMPLES:,} examples, and {name!r} of {here} and {there} would have "
            f'{len(examples):,}; remove examples: `mobileclip concept add "{name}" --unlabel IMAGE --index {there}`'
        )
    vectors = np.concatenate([one.vectors, other.vectors[new]])
    images = (*one.images, *(other.images[index] for index in new))
    used = one.uses_examples or other.uses_examples
    return attrs.evolve(one, examples=examples, vectors=vectors, images=images, uses_examples=used)


def _joined_words(one: TagWords, here: Path, other: TagWords, there: Path) -> TagWords:
    """Return the tag words of two indexes, with their stored score distributions."""
    if (one.template, one.share) != (other.template, other.share):
        raise ValueError(
            f"the tags have the template '{storage.printable(one.template)}' and the share {one.share:g} in {here}, "
            f"but '{storage.printable(other.template)}' and {other.share:g} in {there}; "
            f'use the same settings: `mobileclip tag --template "{storage.printable(one.template)}" '
            f"--share {one.share:g} --index {there}`"
        )
    if not one.about.identity.is_same(other.about.identity):
        raise ValueError(
            f"the tags have the model {one.about.model} in {here} and {other.about.model} in {there}; "
            f"update the tags of the outdated model: `mobileclip tag --index {here}`, or with --index {there}"
        )
    known = {word.casefold() for word in one.words}
    new = [index for index, word in enumerate(other.words) if word.casefold() not in known]
    words = (*one.words, *(other.words[index] for index in new))
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"the tags of {here} and {there} would have {len(words):,} words, expected at most {MOST_WORDS:,}; use "
            f"fewer words in one index: `mobileclip tag --vocabulary WORDS.txt --index {there}`"
        )
    vectors, levels = (
        np.concatenate([own, theirs[new]]) for own, theirs in ((one.vectors, other.vectors), (one.levels, other.levels))
    )
    return attrs.evolve(one, words=words, vectors=vectors, levels=levels)

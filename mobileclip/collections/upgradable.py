"""What is a person's own in an index, concepts and tags, and how it follows the index to another model."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mobileclip.collections.concepts import Concepts
from mobileclip.collections.indexing.upgrading import SAMPLE, UpgradeReport, begin, fill
from mobileclip.collections.opened import OpenedIndex
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.store.about import About, ModelSource
from mobileclip.collections.store.snapshot import take_snapshot
from mobileclip.collections.store.upgrading import Measured, NewSpace
from mobileclip.collections.store.words import Words, read_words, write_words
from mobileclip.collections.tagging import SHARE, levels_of, make_words


class UpgradableIndex(OpenedIndex):
    """An index with concepts and tags, which is brought to another model; see `Collection`."""

    @property
    def concepts(self) -> Concepts:
        """What a person calls by names of their own, taught by examples: `@"my bike"` in a query."""
        return Concepts(self)

    def tag(
        self,
        words: Sequence[str] | None = None,
        *,
        template: str | None = None,
        share: float | None = None,
        show_progress: bool = True,
    ) -> Words:
        """Give the index words that its pictures are tagged with, in the place of those it had, and return them.

        They are columns of conditions then: `tag=WORD` for the share of the collection that fits a word best, and
        `tag:WORD>=0.99` for a score, which is the share of the collection that fits the word less; see `Words`.
        Pictures that are added later have tags too, by what was found here.

        Args:
            words: or phrases; None for those that the index has, in the space that it has now.
            template: the sentence that each is put into, such as `a photo of a {}`; by default the one of before, and
                of a new one the word alone.
            share: of the collection that has each word as a tag; by default that of before, and of a new one 0.05.
            show_progress: whether to show how far it is.

        Raises:
            ValueError: if there are no words or no pictures, or one cannot be a tag.
            OSError: if the index cannot be written.
        """
        before = read_words(self.path)
        if words is None and before is None:
            raise ValueError(f"the index {self.path} has no tags to write anew; give words")
        self.store.require_own_form()
        if before is not None:
            words = before.words if words is None else words
            template, share = template or before.template, before.share if share is None else share
        made = make_words(
            self,
            words or (),
            template=template or "{}",
            share=SHARE if share is None else share,
            show_progress=show_progress,
        )
        write_words(self.path, made)
        self.refresh()
        return made

    def _take_words(self, words: Words, *, is_copy: bool) -> None:
        """Write words that are encoded, by how their scores are spread over this collection unless it is a copy."""
        if not is_copy and len(self) and words.about.identity.is_same(self.store.about.identity):
            words = attrs.evolve(words, levels=levels_of(self.snapshot, words.vectors))
        write_words(self.path, words)
        self.refresh()

    def upgrade_to(self, source: ModelSource, *, force: bool = False, sample: int = SAMPLE) -> Measured | None:
        """Begin to bring the index to another model, and return how both do on its pictures; None if it is of it.

        From then on, each search has its first pictures encoded anew, keeps them, and ranks by them; `upgrade` does
        the rest. Of an upgrade to this model that is under way, nothing is measured again.

        Args:
            source: the new model; paths are kept in full.
            force: whether a model that does worse is taken too.
            sample: pictures that both are measured on, at most; with the captions or the folders that they are in.

        Raises:
            ValueError: if it does worse, another upgrade or job is under way, or there is no such model.
            FileNotFoundError, CheckpointError: if there is no such model, see `mobileclip.load`.
            OSError: if the index cannot be written.
        """
        kept = source.in_full()
        clip, identity = kept.load(self.device, trust=self.trust)
        about = About(**attrs.asdict(identity), dim=clip.model.spec.image.embedding_dim, model=kept)
        before = self.store.about.identity
        with self.store.writing():
            self._let_go(before)
            if identity == self.store.about.identity:
                self._bring_own_things(show_progress=False)
                return None
            snapshot, clips = take_snapshot(self.store), (lambda: self.clip, lambda: clip)
            measured = begin(self.store, snapshot, about, clips, force=force, sample=sample)
        self.refresh()
        self._new_clip = about, clip
        return measured

    def upgrade(
        self,
        *,
        rate: float | None = None,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
    ) -> UpgradeReport:
        """Encode the pictures that are in the old space alone, and return what became of them.

        When all pictures are in the new space, the old one goes, and concepts and tags follow. What is finished is
        kept, whatever ends this.

        Args:
            rate: pictures per second, at most; None for as many as there can be.
            options: how.

        Raises:
            ValueError: if no upgrade is under way, or another job does the same.
            OSError: if the index cannot be written.
        """
        if rate is not None and not rate > 0:
            raise ValueError(f"the rate is {rate}, expected more than 0 pictures per second")
        space = NewSpace.of(self.store)
        if space is None and self._bring_own_things(show_progress=options.show_progress):
            return UpgradeReport(num_encoded=0, is_done=True, left={})
        if space is None:
            raise ValueError(
                f"the index {self.path} is not being upgraded; begin: `mobileclip upgrade {self.path} --to MODEL`"
            )
        report = fill(self.store, space, self._clip_of(space), options, rate=rate)
        self.refresh()
        if report.is_done:
            with self.store.writing():
                self._renew(show_progress=options.show_progress)
                self._bring_own_things(show_progress=options.show_progress)
        return report

    def _bring_own_things(self, *, show_progress: bool) -> bool:
        """Bring concepts and tags to the space of an upgraded index, and return whether any were in another."""
        num_concepts, words = self.concepts.follow(), read_words(self.path)
        is_behind = words is not None and not words.about.identity.is_same(self.store.about.identity)
        if is_behind:
            self.tag(show_progress=show_progress)
        return is_behind or num_concepts > 0

    def left_behind(self, name: str) -> tuple[str, ...]:
        """Return the examples of a concept, by their paths, that the new model could not encode when it was searched.

        Where there are some, the old space answers.

        Args:
            name: of the concept.
        """
        return () if self._spaces is None else self._spaces.left_behind.get(name, ())

    @property
    def num_waiting(self) -> int:
        """How many pictures that queries were to have encoded anew are not yet."""
        return 0 if self._spaces is None else self._spaces.num_waiting

    def encode_waiting(self) -> bool:
        """Encode some of them, the last query's first, and return whether there are more; other threads may search."""
        return self._spaces is not None and self._spaces.encode_waiting()

    def cancel_upgrade(self) -> None:
        """Drop the new space of an index that is being upgraded.

        Raises:
            ValueError: if another job writes to the index.
            OSError: if it cannot be written.
        """
        with self.store.writing():
            if (space := NewSpace.of(self.store)) is not None:
                space.cancel()
        self.refresh()

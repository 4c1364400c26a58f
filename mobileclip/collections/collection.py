"""`Collection`: a searchable index of pictures in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.concepts import Concepts
from mobileclip.collections.indexing.report import IndexReport
from mobileclip.collections.indexing.update import forget, update
from mobileclip.collections.opened import OpenedIndex
from mobileclip.collections.reading.anew import COLUMNS, encode_anew
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.reading.scanning import Scan, scan
from mobileclip.collections.searching.duplicates import THRESHOLD, Duplicates, find_duplicates
from mobileclip.collections.searching.explaining import explained
from mobileclip.collections.searching.filtering import Condition
from mobileclip.collections.searching.learned import Taught, named_concepts
from mobileclip.collections.searching.matches import Match, match_of
from mobileclip.collections.searching.neighbours import remove_graphs
from mobileclip.collections.searching.queries import AWAY, Picture, direction_of, nearest_matches
from mobileclip.collections.store import parquet
from mobileclip.collections.store.about import About, ModelSource
from mobileclip.collections.store.concepts import Concept
from mobileclip.collections.store.merging import MergeReport, merge_stores
from mobileclip.collections.store.own_things import OwnThings
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.words import Words, read_words, write_words
from mobileclip.collections.tagging import SHARE, levels_of, make_words
from mobileclip.collections.viewing import web_file
from mobileclip.engines import Engine
from mobileclip.inference.archive import Embeddings, write_embeddings


class Collection(OpenedIndex):
    """Pictures in an index, which is a folder.

    What it holds is read when it is first asked for, and stays as it is then; `refresh` has it read anew. One job at a
    time writes to an index, while any number read it.

    Args:
        store: the rows.
        clip: the model that the index is of; by default it is loaded when it is first needed.
        device: where to compute.
        trust: whether the author of an export that the index is of may run anything here, see `mobileclip.load`. An
            index does not remember it.
        text_model: a text tower of the model's space that encodes texts in place of the model's own, see
            `mobileclip.load`; of a model that is loaded here. An index does not remember it.

    `graph_sizes` says from how many pictures on graphs are made; it may be set before the index is read. `shortlist`
    says how many pictures a query has encoded anew while the index is upgraded, at most, and `seconds` in what time:
    what is left then is encoded by `encode_waiting`; None for all of them.

    Examples:
        The tests have no photographs, so they leave this out.

        >>> photos = Collection.open("photos.index")  # doctest: +SKIP
        >>> photos.search("a red bicycle in snow", without="people", where=["width>1000"])[0].path  # doctest: +SKIP
        '/home/me/photos/2021/bicycle.jpg'
    """

    @classmethod
    def open(
        cls, path: str | Path, *, device: str = "cpu", trust: bool = False, text_model: str | Path | None = None
    ) -> Collection:
        """Return the collection in a folder, or in a Parquet file that `export` wrote, which is not written to.

        Args:
            path: of it.
            device: where to compute.
            trust: see the class.
            text_model: see the class.

        Raises:
            FileNotFoundError: if the folder is no index.
            ValueError: if it is damaged.
        """
        return cls(Store.open(Path(path)), device=device, trust=trust, text_model=text_model)

    @classmethod
    def create(cls, path: str | Path, source: ModelSource, *, device: str = "cpu", trust: bool = False) -> Collection:
        """Return a new, empty collection.

        Args:
            path: of a folder that holds nothing, or does not exist.
            source: the model; paths are kept in full.
            device: where to compute.
            trust: see the class.

        Raises:
            FileExistsError: if the folder holds something.
            ValueError, FileNotFoundError, CheckpointError: if there is no such model, see `mobileclip.load`.
        """
        kept = source.in_full()
        clip, identity = kept.load(device, trust=trust)
        about = About(**attrs.asdict(identity), dim=clip.model.spec.image.embedding_dim, model=kept)
        return cls(Store.create(Path(path), about), clip=clip, device=device, trust=trust)

    @classmethod
    def create_like(cls, path: str | Path, other: Collection) -> Collection:
        """Return a new, empty collection of the model of another one, which is not loaded.

        Args:
            path: of a folder that holds nothing, or does not exist.
            other: a collection.

        Raises:
            FileExistsError: if the folder holds something.
        """
        return cls(Store.create(Path(path), other.store.about), device=other.device, trust=other.trust)

    @classmethod
    def create_copy(cls, path: str | Path, other: Collection) -> Collection:
        """Return a new collection with all that another one holds, whole or not at all; the other stays as it is.

        Args:
            path: of a folder that holds nothing, or does not exist.
            other: a collection.

        Raises:
            ValueError: if the other one is damaged.
            OSError: if it cannot be read, or the new one cannot be written.
        """
        with storage.atomic_folder(Path(path), overwrite=True) as temporary:
            copy = cls.create_like(temporary, other)
            copy.merge(other, show_progress=False)
        return cls(Store.open(Path(path)), device=other.device, trust=other.trust)

    def add(
        self,
        *inputs: str | Path,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
        engine: Engine | None = None,
    ) -> IndexReport:
        """Bring the index up to date with pictures, folders and shards, and return what became of them.

        New and changed pictures are encoded, those that moved are recognised by their content, wherever they were, and
        those of these folders that are gone are dropped. What is finished is kept, whatever ends this; the same call
        does the rest.

        Args:
            inputs: pictures, folders with pictures, and tar shards, see `scan`.
            options: how.
            engine: whose workers read and encode, for which paths lead to the same files; None for this process.

        Raises:
            ValueError: if another job writes to the index, there are no pictures, or no worker can work.
            OSError: if something is not there, or the index cannot be written.
        """
        return self.add_found(scan([str(one) for one in inputs]), options, engine)

    def add_found(
        self,
        found: Scan,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
        engine: Engine | None = None,
    ) -> IndexReport:
        """Bring the index up to date with files that were found; see `add`.

        Args:
            found: the files.
            options: how.
            engine: see `add`.
            vectors: see `use_vectors`; None for what the index has.

        Raises:
            ValueError, OSError: see `add`.
        """
        before = self.store.about.identity
        with self.store.writing():
            self._let_go(before)
            report = update(self.store, lambda: self.clip, found, options, engine, trust=self.trust)
            self._renew(show_progress=options.show_progress)
        return report

    def forget(self, *folders: str | Path) -> int:
        """Drop folders, or files, from the index, and return how many pictures it had of them; no file is touched.

        Args:
            folders: what the index is of, or a folder around it; it need not be there any more.

        Raises:
            ValueError: if the index has nothing of one, or would find it again as a part of what it is of.
            OSError: if the index cannot be written.
        """
        places = [os.path.abspath(one) for one in folders]  # noqa: PTH100 - links stay links
        with self.store.writing():
            count = forget(self.store, places)
            self._renew(show_progress=False)
        return count

    def merge(self, *others: Collection, show_progress: bool = True) -> MergeReport:
        """Copy the pictures of other indexes of the same model into this one, and return what became of them.

        Of a file that several hold, the rows of its latest change are kept; see `merge_stores`. Each index is copied
        whole or not at all, whatever ends this. Concepts of one name are joined where their texts are the same, and
        words of tags where these are made alike; how their scores are spread is taken from all pictures.

        Args:
            others: they stay as they are.
            show_progress: whether to show how far it is.

        Raises:
            ValueError: if one is of another model, is this one, is damaged, or is written to meanwhile, or a concept
                or the tags are other things in two of them: nothing is copied then.
            OSError: if one cannot be read, or this one cannot be written.
        """
        for other in others:
            if other.path.resolve() == self.path.resolve():
                raise ValueError(f"the index {self.path} cannot be merged with itself; give other indexes")
        before = self.store.about.identity
        with self.store.writing():
            self._let_go(before)
            for other in others:
                self.require(other.store.about.identity, f"the index {other.path}")
            own, is_copy = OwnThings.of(self.path), len(others) == 1 and not len(self)
            for other in others:
                own = own.joined(OwnThings.of(other.path))
            report = merge_stores(self.store, [other.store for other in others], show_progress=show_progress)
            self._renew(show_progress=show_progress)
            own.write_concepts(self.path)
            if own.words is not None:
                self._take_words(own.words, is_copy=is_copy)
        return report

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

    def upgrade(
        self,
        source: ModelSource,
        *,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
    ) -> dict[str, str]:
        """Bring the index to another model, and return the problems of pictures by their paths; see the note.

        Searches go on with the model of before until all is encoded. What is encoded is kept, whatever ends this; the
        same call does the rest. With problems, nothing changes: bring the index up to date first.
        """
        kept = source.in_full()
        clip, identity = kept.load(self.device, trust=self.trust)
        about = About(**attrs.asdict(identity), dim=clip.model.spec.image.embedding_dim, model=kept)
        problems: dict[str, str] = {}
        with self.store.writing():
            about = attrs.evolve(about, decode=self.store.about.decode)
            if about != self.store.about:
                left = self.store.begin_upgrade(about)
                rows = [dict(zip(COLUMNS, one, strict=True)) for one in self.store.values(*COLUMNS, ids=left)]
                read = encode_anew(
                    rows,
                    clip,
                    reduced=about.decode == "fast",
                    batch_size=options.batch_size,
                    num_workers=options.num_workers,
                )
                while some := list(islice(read, options.segment_rows)):
                    problems |= {one.row["path"]: one.problem for one in some if one.problem is not None}
                    self.store.keep_upgraded(
                        (one.row["id"], one.embedding) for one in some if one.embedding is not None
                    )
                if problems:
                    return problems
                remove_graphs(self.path)
                self.store.adopt_upgraded(about)
                self._clip = clip
            self._renew(show_progress=options.show_progress)
            self._bring_own_things(show_progress=options.show_progress)
        return problems

    def _bring_own_things(self, *, show_progress: bool) -> bool:
        """Bring concepts and tags to the space of an upgraded index, and return whether any were in another."""
        num_concepts, words = self.concepts.follow(), read_words(self.path)
        is_behind = words is not None and not words.about.identity.is_same(self.store.about.identity)
        if is_behind:
            self.tag(show_progress=show_progress)
        return is_behind or num_concepts > 0

    def search(
        self,
        text: str | Sequence[str] = (),
        *,
        image: Picture | Sequence[Picture] = (),
        like: Sequence[int] = (),
        without: str | Sequence[str] = (),
        where: Sequence[Condition | str] = (),
        k: int = 10,
        all_frames: bool = False,
    ) -> list[Match]:
        """Return the pictures that are nearest to what is asked for, the nearest first.

        The query is the direction between all texts and pictures, turned away from what is not wanted.

        Args:
            text: what they show, in one text or several; `@"my bike"` in one names a concept. Its examples are encoded
                anew too while the index is upgraded; where one cannot be, the old space answers.
            image: pictures that they are like: paths, or the bytes of files.
            like: pictures of the index that they are like, by `Match.id`.
            without: what they do not show.
            where: conditions on columns, see `Condition`; all must hold.
            k: number of results, at most.
            all_frames: whether a video may be found by several of its frames; by default, by the nearest one alone.
            encode: whether pictures are encoded anew for it, where the index is being upgraded.

        Raises:
            ValueError: if nothing is asked for, k is below 1, a condition is none, or an id is unknown.
            ImageError: if a picture cannot be read.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        snapshot, direction, taught = self.snapshot, *self._asked(text, image, like, without)
        query = direction(lambda: self.clip, known=_known(snapshot, like))
        return nearest_matches(
            snapshot,
            self.graphs,
            query,
            k,
            where=where,
            all_frames=all_frames,
            cache=taught.cache(),
        )

    def explain(
        self,
        match: Match,
        text: str | Sequence[str] = (),
        *,
        image: Picture | Sequence[Picture] = (),
        like: Sequence[int] = (),
        without: str | Sequence[str] = (),
    ) -> NDArray[np.float32]:
        """Return what each place of a picture that was found adds to its score: a map that sums to it.

        It is attribution, and not segmentation; see `ImageTextModel.explain`. The picture is read again.

        Shape:
            result: `(rows, columns)`, of the square in the picture's middle that the model sees.

        Args:
            match: the picture.
            text: what was asked for, as in `search`.
            image: see `search`.
            like: see `search`.
            without: see `search`.

        Raises:
            ValueError: if the model cannot say, such as a ViT, nothing is asked for, or the index is being
                brought to another model, so that scores are of two.
            ImageError: if a picture cannot be read.
        """
        direction, taught = self._asked(text, image, like, without)
        if taught.concepts:
            raise ValueError(
                "examples of a concept are compared as a whole, and no place of a picture has a share of that"
            )
        query = direction(lambda: self.clip, known=_known(self.snapshot, like))
        return explained(self.clip, match, query, reduced=self.store.about.decode == "fast")

    def _asked(
        self,
        text: str | Sequence[str],
        image: Picture | Sequence[Picture],
        like: Sequence[int],
        without: str | Sequence[str],
    ) -> tuple[Callable[..., NDArray[np.float32]], Taught]:
        """Return what makes a query of a model and of known embeddings, and the concepts whose examples add to it."""
        (texts, wanted), (away, unwanted) = (self._named(one) for one in (text, without))
        pictures = _several(image)
        direction = partial(
            direction_of, texts=texts, pictures=pictures, without=away, reduced=self.store.about.decode == "fast"
        )
        num_wanted = max(1, len(texts) + len(pictures) + len(like))
        return direction, Taught.of(wanted, unwanted, num_wanted=num_wanted, share=AWAY / max(1, len(away)))

    def _named(self, given: str | Sequence[str]) -> tuple[list[str], list[Concept]]:
        """Return texts, those of concepts that they name among them, and these concepts."""
        parts = [named_concepts(str(one)) for one in _several(given)]
        concepts = [self.concepts.require(name) for _, names in parts for name in names]
        return [*(rest for rest, _ in parts if rest.strip()), *(one.text for one in concepts)], concepts

    def duplicates(self, *, threshold: float = THRESHOLD, show_progress: bool = True) -> Duplicates:
        """Return the groups of pictures that show the same; see `find_duplicates`.

        Args:
            threshold: cosine similarity from which on two show the same.
            show_progress: whether to show how far it is.

        Raises:
            ValueError: if the threshold is not above 0 and at most 1.
        """
        graphs = self.graphs if len(self.snapshot) > self.graph_sizes.exact else None
        return find_duplicates(self.snapshot, graphs, threshold=threshold, show_progress=show_progress)

    def export(self, output: str | Path, *, overwrite: bool = False, show_progress: bool = True) -> int:
        """Write the embeddings of the pictures that are where the index has them, and return how many there are.

        Args:
            output: `*.npz` is an archive that `mobileclip embed` could have written; `*.safetensors` has small copies
                of the pictures too, and small vectors where the index has them, and is what the page of `examples/web`
                opens, see `write_web_file`; `*.parquet` has
                all rows, those of files that are gone included, for other programs, `open` and `merge`.
            overwrite: whether a file that is there is replaced.
            show_progress: whether to show how far it is.

        Raises:
            ValueError: if there are no pictures, none is where it was, or the name ends otherwise.
            OSError: if it is there already, or cannot be written.
        """
        if Path(output).suffix in web_file.SUFFIXES:
            return web_file.write_web_file(
                Path(output),
                self.snapshot,
                self.clip,
                overwrite=overwrite,
                show_progress=show_progress,
            )
        if Path(output).suffix == parquet.SUFFIX:
            return parquet.write_rows(Path(output), self.store.rows(), self.store.about, overwrite=overwrite)
        places, shown = self.snapshot.shown()
        names = tuple(match_of(row, 1.0).name for row in shown)
        image = self.snapshot.vectors[places].astype(np.float32)
        embeddings = Embeddings(model=self.store.about.identity, image=image, image_paths=names)
        write_embeddings(Path(output), embeddings, overwrite=overwrite)
        return len(names)


def _known(snapshot: Snapshot, like: Sequence[int]) -> list[NDArray[np.float32]]:
    return [snapshot.vectors[snapshot.place(one)].astype(np.float32) for one in like]


def _several(given: Picture | Sequence[Picture]) -> Sequence[Picture]:
    return [given] if isinstance(given, (str, Path, bytes)) else given

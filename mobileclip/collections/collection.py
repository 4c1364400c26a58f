"""Defines `Collection`, a searchable image index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.concepts import Concept, QueryConcepts, named_concepts
from mobileclip.collections.conditions import Condition
from mobileclip.collections.duplicates import MOST_COMPARED, THRESHOLD, Duplicates, find_duplicates
from mobileclip.collections.exports import SUFFIX, WEB_SUFFIX, open_rows, write_rows, write_web_file
from mobileclip.collections.images import COLUMNS, Reencoded, reencode
from mobileclip.collections.index import IndexReport, forget, update, useful_workers
from mobileclip.collections.locations import find_index
from mobileclip.collections.merge import MergedConcepts, MergeReport, merge_stores
from mobileclip.collections.metadata import IndexMetadata, ModelSource
from mobileclip.collections.nearest import (
    GRAPH,
    GraphSizes,
    NeighbourGraph,
    build_graph,
    open_graph,
    remove_graph,
    update_graph,
)
from mobileclip.collections.queries import (
    NEGATIVE_WEIGHT,
    Matches,
    QueryImage,
    nearest_matches,
    newest_matches,
    query_direction,
    similarity_map,
)
from mobileclip.collections.read import IndexOptions
from mobileclip.collections.scan import Scan, scan
from mobileclip.collections.snapshot import Match, Snapshot, match_of, take_snapshot
from mobileclip.collections.store import ReplacedIndexError, Store
from mobileclip.collections.tags import SHARE, TagWords, levels_of, make_tag_words, read_tag_words, write_tag_words
from mobileclip.collections.teaching import Concepts
from mobileclip.engines import Engine
from mobileclip.inference import Embeddings, ImageTextModel, ModelIdentity, select_backend, write_embeddings
from mobileclip.progress import Progress
from mobileclip.terminal import console


class Collection:
    """A searchable image index, stored in a folder.

    The collection reads the index on first use, and again after `refresh`. Only one job at a time can write to an
    index, but any number of jobs can read the index.

    Args:
        store: SQLite storage of the index.
        clip: model of the index; None to load the model on first use.
        device: PyTorch device of the model, such as `cpu` or `cuda:0`.
        trust: whether to open an exported model from another machine, see `mobileclip.load`. The index does not store
            this option.
        text_model: text tower of the same embedding space, to use instead of the model's text tower, see
            `mobileclip.load`; None for the model's text tower. The index does not store this option.

    For more than `graph_sizes.exact` images, search uses a neighbour graph. Set the attribute `graph_sizes` before the
    first search.

    Examples:
        The test suite skips this example, which needs an index of photographs.

        >>> photos = Collection.open("photos.index")  # doctest: +SKIP
        >>> photos.search("a red bicycle in snow", without="people", where=["width>1000"])[0].path  # doctest: +SKIP
        '/home/me/photos/2021/bicycle.jpg'
    """

    def __init__(
        self,
        store: Store,
        *,
        clip: ImageTextModel | None = None,
        device: str = "cpu",
        trust: bool = False,
        text_model: str | Path | None = None,
    ) -> None:
        self.store = store
        self.device, self.trust, self.text_model = device, trust, text_model
        self.graph_sizes = GraphSizes()
        self._clip, self._clip_of = clip, store.about.identity
        self._snapshot: Snapshot | None = None
        self._graph: NeighbourGraph | None = None

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "cpu",
        trust: bool = False,
        text_model: str | Path | None = None,
    ) -> Collection:
        """Open an index by its folder, by its image folder, or as a Parquet file written by `export`.

        Args:
            path: index folder, indexed image folder, or Parquet file (read-only); None for the newest index in the
                cache, see `find_index`.
            device: device of the model, see `Collection`.
            trust: see `Collection`.
            text_model: see `Collection`.

        Raises:
            FileNotFoundError: if the index does not exist.
            ValueError: if the index is damaged, or the Parquet file has no index rows.
        """
        is_file = path is not None and Path(path).suffix == SUFFIX and Path(path).is_file()
        store = open_rows(Path(path)) if path is not None and is_file else Store.open(find_index(path))
        return cls(store, device=device, trust=trust, text_model=text_model)

    @classmethod
    def create(cls, path: str | Path, source: ModelSource, *, device: str = "cpu", trust: bool = False) -> Collection:
        """Create a new, empty collection.

        Args:
            path: path of an empty or new folder.
            source: name or checkpoint of the model; the index stores the absolute path of a local checkpoint.
            device: device of the model, see `Collection`.
            trust: see `Collection`.

        Raises:
            FileExistsError: if the folder is not empty.
            ValueError, FileNotFoundError, CheckpointError: if the model cannot be loaded, see `mobileclip.load`.
        """
        clip, about = _loaded(source, device, trust=trust)
        return cls(Store.create(Path(path), about), clip=clip, device=device, trust=trust)

    @classmethod
    def create_like(cls, path: str | Path, other: Collection) -> Collection:
        """Create a new, empty collection with the model of another collection, without loading the model.

        Args:
            path: path of an empty or new folder.
            other: collection with the model to use.

        Raises:
            FileExistsError: if the folder is not empty.
        """
        return cls(Store.create(Path(path), other.store.about), device=other.device, trust=other.trust)

    @classmethod
    def create_merged(
        cls, path: str | Path, *others: Collection, show_progress: bool = True
    ) -> tuple[Collection, MergeReport]:
        """Merge collections into a new collection, atomically; return the new collection and the report.

        Args:
            path: path of an empty or new folder.
            others: one or more collections with the same model, see `merge`.
            show_progress: whether to show progress.

        Raises:
            ValueError: if the models differ, or concepts or tags conflict, see `merge`.
            OSError: if a collection cannot be read, or the new collection cannot be written.
        """
        for other in others[1:]:
            others[0].require(other.store.about.identity, f"the index {other.path}")
        with storage.atomic_folder(Path(path), overwrite=True) as temporary:
            report = cls.create_like(temporary, others[0]).merge(*others, show_progress=show_progress)
        return cls(Store.open(Path(path)), device=others[0].device, trust=others[0].trust), report

    @property
    def path(self) -> Path:
        """The folder of the index."""
        return self.store.folder

    @property
    def clip(self) -> ImageTextModel:
        """The model of the index, with the text tower `text_model` if given.

        Raises:
            ValueError: if the model's source now contains different weights, or the text tower has a different
                embedding space.
        """
        if self._clip is None or not self._clip_of.is_same(self.store.about.identity):
            source = self.store.about.model
            clip, identity = source.load(self.device, trust=self.trust, text_model=self.text_model)
            self.require(identity, "the source of its model")
            self._clip, self._clip_of = clip, self.store.about.identity
        return self._clip

    def require(self, identity: ModelIdentity, there: str) -> None:
        """Raise an error if a model differs from the model of the index.

        Args:
            identity: identity of the model.
            there: description of the model's source, for the error message.

        Raises:
            ValueError: if the models differ.
        """
        self.store.about.identity.require_same(identity, here=f"the index {self.path}", there=there)

    def require_source(self, source: ModelSource) -> None:
        """Check by name, without reading or downloading weights, that a model can be the model of the index.

        Args:
            source: the requested model.

        Raises:
            ValueError: if the models differ, or the model is unknown.
            FileNotFoundError: if the file of the model does not exist.
        """
        about = self.store.about
        if about.is_known_to_be_of_another(source) and str(source) != str(about.model):
            raise ValueError(
                f"the index {self.path} has the model {about.model}, not {source}: embeddings of two models cannot "
                "be compared; omit the model to use the index, or choose a different folder for a new index"
            )

    def __len__(self) -> int:
        """Return the number of images, without reading embeddings."""
        return len(self.store if self._snapshot is None else self._snapshot)

    @property
    def snapshot(self) -> Snapshot:
        """The cached snapshot of the index, read on first access."""
        if self._snapshot is None:
            self._snapshot = take_snapshot(self.store)
            self._graph = open_graph(self.path, self._snapshot, self.graph_sizes)
        return self._snapshot

    @property
    def graph(self) -> NeighbourGraph | None:
        """The neighbour graph of `snapshot`; None for exact search."""
        assert self.snapshot is not None, "reading the index also opens the graph"
        return self._graph

    def load(self) -> None:
        """Read the index and load the model now instead of on first use.

        Raises:
            ValueError, OSError: if the index or the model cannot be read.
        """
        assert self.snapshot is not None, "the property reads the index"
        assert self.clip is not None, "the property loads the model"

    def refresh(self) -> None:
        """Discard the cached snapshot, so that the next use reads the index again."""
        self.store = attrs.evolve(self.store) if self.store.exported else Store.open(self.path)
        self._snapshot = self._graph = None

    def reopened(self) -> Collection:
        """Return a new collection for the current index in the folder, with the loaded model if the model is the same.

        Raises:
            FileNotFoundError, ValueError: see `Collection.open`.
        """
        store = Store.open(self.path)
        clip = self._clip if self._clip_of.is_same(store.about.identity) else None
        other = Collection(store, clip=clip, device=self.device, trust=self.trust, text_model=self.text_model)
        other.graph_sizes = self.graph_sizes
        return other

    def info(self) -> dict[str, object]:
        """Return the path, number of images and model of the index, for JSON."""
        return {"index": str(self.path), "images": len(self), "model": str(self.store.about.model)}

    def add(
        self,
        *inputs: str | Path,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
        engine: Engine | None = None,
    ) -> IndexReport:
        """Update the index with images, folders and shards, and return a report.

        The update encodes new and changed images, recognises moved images by content, and removes images that were
        deleted from the inputs. The update keeps the images of a missing or empty folder. After an interruption, the
        same call resumes the update.

        Args:
            inputs: images, folders with images, and tar shards, see `scan`.
            options: indexing options.
            engine: engine that runs the workers, on machines with the same file paths; None to encode in this process.

        Raises:
            ValueError: if another job writes to the index, an input has no images, or no worker can start.
            OSError: if an input does not exist, or the index cannot be written.
        """
        return self.add_found(scan([str(one) for one in inputs]), options, engine)

    def add_found(
        self,
        found: Scan,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
        engine: Engine | None = None,
    ) -> IndexReport:
        """Update the index with the files of a scan; see `add`.

        Args:
            found: result of `scan`.
            options: indexing options.
            engine: see `add`.

        Raises:
            ValueError, OSError: see `add`.
        """
        with self._changing(show_progress=options.show_progress):
            return update(self.store, lambda: self.clip, found, options, engine, trust=self.trust)

    def forget(self, *folders: str | Path) -> int:
        """Remove folders or files from the index, and return the number of removed images. The files stay on disk.

        Args:
            folders: inputs of the index, or parent folders of inputs; the folders need not exist.

        Raises:
            ValueError: if the index has no images of a folder, or the next update would index the folder again as part
                of a larger input.
            OSError: if the index cannot be written.
        """
        paths = [os.path.abspath(one) for one in folders]  # noqa: PTH100 - links stay links
        with self._changing(show_progress=False):
            return forget(self.store, paths)

    @contextmanager
    def _changing(self, *, show_progress: bool) -> Iterator[None]:
        """Lock the index for writing; on exit, discard the cached snapshot and graph if the index changed."""
        with self.store.writing():
            before = self.store.token
            if self._snapshot is not None and self._snapshot.token != before:
                self._snapshot = self._graph = None
            try:
                yield
            finally:
                if self.store.token != before:
                    self._snapshot = self._graph = None
            if len(self.store) > self.graph_sizes.exact:
                if self.store.token != before or not (self.path / GRAPH).exists():
                    update_graph(self.path, self.snapshot, self.graph_sizes, show_progress=show_progress)
                    self._graph = open_graph(self.path, self.snapshot, self.graph_sizes)
            else:
                remove_graph(self.path)

    def merge(self, *others: Collection, show_progress: bool = True) -> MergeReport:
        """Merge other indexes with the same model into this index, in one transaction; return a report.

        The merge compares images by digest, see `merge_stores`. The merge also combines concepts with equal names and
        texts, combines tags with equal settings, and calibrates the tags on all images.

        Args:
            others: collections to merge, which stay unchanged.
            show_progress: whether to show progress.

        Raises:
            ValueError: if one of `others` has a different model, is this index, is damaged, or changes during the
                merge, or if concepts or tags conflict. After an error, the merge has copied nothing.
            OSError: if one of `others` cannot be read, or this index cannot be written.
        """
        for other in others:
            if other.path.resolve() == self.path.resolve():
                raise ValueError(f"the index {self.path} cannot be merged with itself; choose other indexes")
        with self._changing(show_progress=show_progress):
            for other in others:
                self.require(other.store.about.identity, f"the index {other.path}")
            own, is_copy = MergedConcepts.of(self.path), len(others) == 1 and not len(self.store)
            for other in others:
                own = own.joined(MergedConcepts.of(other.path))
            report = merge_stores(self.store, [other.store for other in others], show_progress=show_progress)
        own.write_concepts(self.path)
        if own.words is not None:
            words, _ = own.words
            if not is_copy and len(self) and words.about.identity.is_same(self.store.about.identity):
                words = attrs.evolve(words, levels=levels_of(self.snapshot.vectors, words.vectors))
            write_tag_words(self.path, words)
            self.refresh()
        return report

    @property
    def concepts(self) -> Concepts:
        """The user's concepts, with examples; a query names a concept as `@"my bike"`."""
        return Concepts(self)

    def tag(
        self,
        words: Sequence[str] | None = None,
        *,
        template: str | None = None,
        share: float | None = None,
        show_progress: bool = True,
    ) -> TagWords:
        """Replace the tag words of the index, and return the new words.

        In conditions, `tag=WORD` selects the images with the word's highest scores, and `tag:WORD>=0.99` selects images
        by their score for the word, a percentile rank within the collection; see `TagWords`. Images added later get
        tags by the same calibration.

        Args:
            words: words or phrases; None to calibrate the current words of the index again.
            template: prompt template, such as `a photo of a {}`; None for the template of the earlier words, or for the
                word alone if the index has no words.
            share: for each word, fraction of the images (between 0 and 1) that get this word as a tag; None for the
                earlier fraction, or for 0.05 if the index has no words.
            show_progress: whether to show progress.

        Raises:
            ValueError: if there are no words or no images, or a word, the template or the share is invalid, see
                `make_tag_words`.
            OSError: if the index cannot be written.
        """
        before = read_tag_words(self.path)
        if words is None and before is None:
            raise ValueError(f"the index {self.path} has no tags to update; specify words")
        if before is not None:
            words = before.words if words is None else words
            template, share = template or before.template, before.share if share is None else share
        made = make_tag_words(
            words or (),
            self.clip,
            self.store.about,
            self.snapshot.vectors,
            template=template or "{}",
            share=SHARE if share is None else share,
            show_progress=show_progress,
        )
        write_tag_words(self.path, made)
        self.refresh()
        return made

    def upgrade(
        self,
        source: ModelSource,
        *,
        options: IndexOptions = IndexOptions(),  # noqa: B008  frozen
    ) -> dict[str, str]:
        """Encode all images with another model, switch the index to this model, and return problems by image path.

        Searches use the old model until all images are encoded; then the index switches to the new model in one
        transaction. After an interruption, the same call resumes. If any image cannot be read, the index keeps the old
        model; update the index with `add`, and then upgrade again.

        Args:
            source: name or checkpoint of the new model.
            options: indexing options.

        Raises:
            ValueError: if another job writes to the index, or the model is unknown.
            OSError: if the index cannot be written.
        """
        clip, about = _loaded(source, self.device, trust=self.trust)
        with self._changing(show_progress=options.show_progress):
            about = attrs.evolve(about, decode=self.store.about.decode)
            if not about.identity.is_same(self.store.about.identity):
                problems = self._encode_upgraded(clip, about, options)
                if problems:
                    return problems
                remove_graph(self.path)
                self.store.adopt_upgraded(about)
        self._clip, self._clip_of = clip, about.identity
        self.concepts.migrate()
        words = read_tag_words(self.path)
        if words is not None and not words.about.identity.is_same(about.identity):
            self.tag(show_progress=options.show_progress)
        return {}

    def _encode_upgraded(self, clip: ImageTextModel, about: IndexMetadata, options: IndexOptions) -> dict[str, str]:
        """Store the new model's embeddings of all images, and return the problems of unreadable images."""
        left = self.store.begin_upgrade(about)
        rows = [dict(zip(COLUMNS, one, strict=True)) for one in self.store.values(*COLUMNS, ids=left)]
        rows.sort(key=lambda row: row["path"] if row["part"] is not None else "")
        paths = (Path(row["path"]) for row in rows if row["part"] is None and row["time"] is None)
        clip = select_backend(clip, paths, len(rows), precision=options.precision, show_progress=options.show_progress)
        read = reencode(
            rows,
            clip,
            reduced=about.decode == "fast",
            batch_size=options.batch_size,
            num_workers=useful_workers(options.num_workers, len(rows)),
        )
        problems: dict[str, str] = {}
        shown = console(shown=options.show_progress)
        with Progress("re-encoding", total=len(rows), unit="images", console=shown) as bar:
            for some in _portions(read, options):
                problems |= {one.row["path"]: one.problem for one in some if one.problem is not None}
                self.store.keep_upgraded((one.row["id"], one.embedding) for one in some if one.embedding is not None)
                bar.advance(len(some))
        return problems

    def search(
        self,
        text: str | Sequence[str] = (),
        *,
        image: QueryImage | Sequence[QueryImage] = (),
        like: Sequence[int] = (),
        without: str | Sequence[str] = (),
        where: Sequence[Condition | str] = (),
        k: int = 10,
        all_frames: bool = False,
    ) -> Matches:
        """Return the images nearest to a query, nearest first.

        The query embedding is the mean of the text and image embeddings, minus half of the mean embedding of `without`.
        By default, search is exact up to two million images; see `Matches.is_exact`.

        Args:
            text: one or several texts; `@"my bike"` in a text names a concept.
            image: one or several example images, as paths or encoded bytes.
            like: ids of indexed images to use as examples, see `Match.id`.
            without: one or several texts to exclude.
            where: conditions on columns, see `Condition`; results meet all conditions.
            k: maximum number of results.
            all_frames: whether to return several frames of a video, instead of only the nearest frame.

        Raises:
            ValueError: if the query is empty, k is below 1, a condition is invalid, an id is unknown, or all files of
                the index are missing.
            ImageError: if an image cannot be read.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        while True:
            snapshot, graph = self.snapshot, self.graph
            direction, taught = self._asked(text, image, like, without)
            query = direction(lambda: self.clip, known=_known(snapshot, like))
            try:
                return nearest_matches(
                    snapshot, graph, query, k, where=where, all_frames=all_frames, cache=taught.cache()
                )
            except ReplacedIndexError:
                if like:  # the ids belong to the replaced index
                    raise
                self.refresh()

    def newest(self, *, where: Sequence[Condition | str] = (), k: int = 10, all_frames: bool = False) -> Matches:
        """Return the images that meet all conditions, newest first; see `newest_matches`.

        Args:
            where: conditions on columns, see `Condition`; without conditions, all images qualify.
            k: maximum number of images.
            all_frames: whether to return several frames of a video, instead of only one.

        Raises:
            ValueError: if a condition is invalid, or `k` is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        return newest_matches(self.snapshot, k, where=where, all_frames=all_frames)

    def explain(
        self,
        match: Match,
        text: str | Sequence[str] = (),
        *,
        image: QueryImage | Sequence[QueryImage] = (),
        like: Sequence[int] = (),
        without: str | Sequence[str] = (),
    ) -> NDArray[np.float32]:
        """Return the share of each image location in a match's score; the shares sum to the score.

        The result is an attribution map, not a segmentation; see `ImageTextModel.explain`. The method reads the image
        file again.

        Shape:
            result: `(rows, columns)`, for the centre crop that the model receives.

        Args:
            match: match of the image to explain.
            text: texts of the query, see `search`.
            image: example images of the query, see `search`.
            like: ids of example images, see `search`.
            without: texts to exclude, see `search`.

        Raises:
            ValueError: if the model does not support explanations (a ViT, for example), the query is empty, or the
                query uses a concept with examples.
            ImageError: if an image cannot be read.
        """
        direction, taught = self._asked(text, image, like, without)
        if taught.concepts:
            raise ValueError("a concept's examples have no map over image locations; omit concepts that use examples")
        query = direction(lambda: self.clip, known=_known(self.snapshot, like))
        return similarity_map(self.clip, match, query, reduced=self.store.about.decode == "fast")

    def _asked(
        self,
        text: str | Sequence[str],
        image: QueryImage | Sequence[QueryImage],
        like: Sequence[int],
        without: str | Sequence[str],
    ) -> tuple[Callable[..., NDArray[np.float32]], QueryConcepts]:
        """Return the function that computes the query embedding, and the query's concepts with examples."""
        (texts, wanted), (away, unwanted) = (self._named(one) for one in (text, without))
        images = _several(image)
        direction = partial(
            query_direction, texts=texts, images=images, without=away, reduced=self.store.about.decode == "fast"
        )
        num_wanted = max(1, len(texts) + len(images) + len(like))
        return direction, QueryConcepts.of(
            wanted, unwanted, num_wanted=num_wanted, share=NEGATIVE_WEIGHT / max(1, len(away))
        )

    def _named(self, given: str | Sequence[str]) -> tuple[list[str], list[Concept]]:
        """Return the texts, including those of named concepts, and the named concepts."""
        parts = [named_concepts(str(one)) for one in _several(given)]
        concepts = [self.concepts.require(name) for _, names in parts for name in names]
        return [*(rest for rest, _ in parts if rest.strip()), *(one.text for one in concepts)], concepts

    def duplicates(self, *, threshold: float = THRESHOLD, show_progress: bool = True) -> Duplicates:
        """Return the groups of near-duplicate images; see `find_duplicates`.

        Args:
            threshold: minimum cosine similarity of near duplicates.
            show_progress: whether to show progress.

        Raises:
            ValueError: if the threshold is not above 0 and at most 1.
        """
        graph = self.graph
        if graph is None and len(self.snapshot) > MOST_COMPARED:
            graph = build_graph(self.snapshot, self.graph_sizes, show_progress=show_progress)
        return find_duplicates(self.snapshot, graph, threshold=threshold, show_progress=show_progress)

    def export(self, output: str | Path, *, overwrite: bool = False, show_progress: bool = True) -> int:
        """Export the images' embeddings, and return the number of images; only a Parquet file includes missing images.

        Args:
            output: path of the file. `*.npz` is an archive like the output of `mobileclip embed`. `*.safetensors` also
                has small copies of the images, for the page in `examples/web`, see `write_web_file`. `*.parquet` has
                all rows, including rows of missing files; other programs, `open` and `merge` can read this file.
            overwrite: whether to replace an existing file.
            show_progress: whether to show progress.

        Raises:
            ValueError: if there are no images, all files are missing, or the suffix is unknown.
            OSError: if the file exists and `overwrite` is false, or the file cannot be written.
        """
        path = Path(output)
        if path.suffix == WEB_SUFFIX:
            return write_web_file(path, self.snapshot, self.clip, overwrite=overwrite, show_progress=show_progress)
        if path.suffix == SUFFIX:
            return write_rows(path, self.store.rows(), self.store.about, overwrite=overwrite)
        indices, shown = self.snapshot.shown()
        names = tuple(match_of(row, 1.0).name for row in shown)
        image = self.snapshot.vectors[indices].astype(np.float32)
        embeddings = Embeddings(model=self.store.about.identity, image=image, image_paths=names)
        write_embeddings(path, embeddings, overwrite=overwrite)
        return len(names)


def _loaded(source: ModelSource, device: str, *, trust: bool) -> tuple[ImageTextModel, IndexMetadata]:
    """Load a model, and return the model with the metadata of a new index."""
    kept = source.in_full()
    clip, identity = kept.load(device, trust=trust)
    return clip, IndexMetadata(**attrs.asdict(identity), dim=clip.model.spec.image.embedding_dim, model=kept)


def _portions(read: Iterable[Reencoded], options: IndexOptions) -> Iterator[list[Reencoded]]:
    """Yield lists of images; a list ends at a maximum number of images, or after a maximum time."""
    some: list[Reencoded] = []
    begun = time.monotonic()
    for one in read:
        some.append(one)
        if len(some) >= options.segment_rows or time.monotonic() - begun > options.segment_seconds:
            yield some
            some, begun = [], time.monotonic()
    yield some


def _known(snapshot: Snapshot, like: Sequence[int]) -> list[NDArray[np.float32]]:
    return [snapshot.vectors[snapshot.index_of(one)].astype(np.float32) for one in like]


def _several(given: QueryImage | Sequence[QueryImage]) -> Sequence[QueryImage]:
    return [given] if isinstance(given, (str, Path, bytes)) else given

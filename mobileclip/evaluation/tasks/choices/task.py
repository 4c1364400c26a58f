"""Tasks that ask which of several texts, or of several pictures, is the right one."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import attrs
import torch
from torch import Tensor

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.evaluation.benchmark import Benchmark, fingerprint, folder_content, hash_of
from mobileclip.evaluation.encoding import Features
from mobileclip.evaluation.metrics.outcomes import Outcomes
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.task import Evaluation, Task
from mobileclip.inference.encoding import encode_each
from mobileclip.inference.image_text_model import Views
from mobileclip.inference.pictures import views_of

_MAX_IMAGE_BYTES = 1 << 28
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)

# Left, top, right and bottom, in pixels; the last two are not part of it.
Box = tuple[int, int, int, int]


@attrs.frozen
class View:
    """An image, or a box of it, that a multiple-choice case shows.

    Args:
        picture: its name.
        box: the part, in pixels of the picture as it is encoded; the whole, turned upright, where it is None.
    """

    picture: str
    box: Box | None = None


@attrs.frozen(kw_only=True)
class Case:
    """Pictures and texts, some of which belong together.

    Args:
        key: what reports call it.
        views: one, or several to choose from.
        texts: one, or several to choose from.
        right: places of what is to be chosen; where there are as many texts as pictures, those of one place are pairs.
        group: what it tests; empty where a data set has no such groups.
    """

    key: str
    views: tuple[View, ...] = attrs.field(validator=attrs.validators.min_len(1))
    texts: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    right: tuple[int, ...] = (0,)
    group: str = ""


@attrs.frozen(kw_only=True)
class Picture:
    """A picture that is there, or can be read.

    Args:
        name: of the picture.
        content: the encoded picture; paths or URLs, of which the first that exists has it; or what is wrong.
    """

    name: str
    content: bytes | Sequence[str] | BadSampleError = attrs.field(repr=False)

    def read(self) -> bytes:
        """Return the encoded picture.

        Raises:
            BadSampleError: image_missing or image_unreadable.
            OSError: if it is there and cannot be read, or its store cannot be reached.
        """
        if isinstance(self.content, BadSampleError):
            raise self.content
        if isinstance(self.content, bytes):
            return self.content
        for address in self.content:
            with suppress(FileNotFoundError, NotADirectoryError):
                return storage.read_bytes(address, limit=_MAX_IMAGE_BYTES)
        others = ", with any other extension of images, too" if len(self.content) > 1 else ""
        raise BadSampleError("image_missing", f"{self.content[0]} is missing{others}")


def find_pictures(images: str, names: Sequence[str]) -> Iterator[Picture]:
    """Yield the pictures of these names, in the order in which they are stored.

    Args:
        images: a zip file, or a folder; path or URL.
        names: of files, each once, with or without their extension; those of a folder may lie in folders below.

    Raises:
        ValueError: if the zip file is none.
        OSError: if it cannot be read, or a store cannot be reached.
    """
    if not images.endswith(".zip"):
        for name in names:
            endings = [""] if _extension(name) in IMAGE_EXTENSIONS else [f".{one}" for one in IMAGE_EXTENSIONS]
            yield Picture(name=name, content=[storage.join(images, f"{name}{ending}") for ending in endings])
        return
    with storage.open_read(images) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{images} is no zip file, or not a whole one: {error}; fetch it again") from None
        with archive:
            yield from _in_zip(images, archive, names)


def _in_zip(images: str, archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[Picture]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        file = entry.filename.rpartition("/")[2]
        if _extension(file) in IMAGE_EXTENSIONS:
            entries.setdefault(file.rpartition(".")[0], entry)
    for name in names:
        if name not in entries:
            yield Picture(name=name, content=BadSampleError("image_missing", f"{images} has no picture {name!r}"))
    # From a web server, going on is sooner than going back and forth.
    for name in sorted(set(names) & entries.keys(), key=lambda name: entries[name].header_offset):
        yield Picture(name=name, content=_from_zip(archive, entries[name]))


def _from_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | BadSampleError:
    if entry.file_size > _MAX_IMAGE_BYTES:
        return BadSampleError("image_unreadable", f"it has {entry.file_size} bytes")
    try:
        return archive.read(entry)
    except _READ_ERRORS as error:
        return BadSampleError("image_unreadable", f"{type(error).__name__}: {error}")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


Question = Case | Picture
Scored = tuple[dict[str, float], Outcomes]


@attrs.frozen(kw_only=True)
class ChoiceTask(Task):
    """Cases, their pictures, and what is counted.

    Args:
        key: what results call it.
        name: what tables call it.
        path: folder or URL of its data.
        ask: yields the cases and the pictures, each picture once and behind the cases about it; tells a report what it
            leaves out.
        count: from features to metrics, the main one among them, and the outcomes of that.
        num_pictures: about how many there are; zero where that is not known.
        benchmark: the data set whose pictures are asked about; None where they are files in `path`.
        orders: a hash of the orders that cases are made of; empty where there are none.
    """

    key: str
    name: str
    path: str
    ask: Callable[[SkipReport], Iterable[Question]] = attrs.field(repr=False)
    count: Callable[[Features], Scored] = attrs.field(repr=False)
    num_pictures: int = 0
    benchmark: Benchmark | None = attrs.field(default=None, repr=False)
    orders: str = ""

    def content(self) -> str | None:
        """Return a hash of the files."""
        files = folder_content(self.path) if self.benchmark is None else fingerprint(self.benchmark)
        return None if files is None else hash_of([self.key, self.path, files, self.orders])

    def features(self, session: Session) -> Features:
        """Return the embeddings of all parts of pictures, and of all texts that differ for the model, each once.

        The header has, by case, `keys`, `pictures`, the first one's name, `views` and `texts`, rows of the embeddings,
        `right` and `groups`.

        Returns:
            The report counts cases. What lacks a picture is left out with its reason: image_missing, image_unreadable,
            box_outside, and those of pictures that cannot be decoded, which start with `image_`.

        Raises:
            ValueError: if no case is left; the message says why.
            OSError: if the pictures cannot be read.
        """
        return session.kept(self.key, self.content, self._encoded)

    def score(self, features: Features) -> Evaluation:
        """Return the metrics over the cases that are left."""
        metrics, outcomes = self.count(features)
        report = features.report
        result = DatasetResult(
            key=self.key,
            dataset=self.name,
            metrics=metrics,
            num_images=report.num_read,
            num_skipped=report.num_skipped,
        )
        return Evaluation(result=result, report=report, outcomes=outcomes)

    def _encoded(self, session: Session) -> Features:
        report, cases = SkipReport(), []
        found: dict[View, Tensor | BadSampleError] = {}
        boxes: dict[str, dict[Box | None, None]] = {}

        def asked() -> Iterator[tuple[Picture, tuple[Box | None, ...]]]:
            for one in self.ask(report):
                if isinstance(one, Case):
                    cases.append(one)
                    for view in one.views:
                        boxes.setdefault(view.picture, {})[view.box] = None
                elif one.name in boxes:
                    yield one, tuple(boxes[one.name])

        def parts(item: tuple[Picture, tuple[Box | None, ...]]) -> Views:
            return views_of(item[0].read(), session.clip.transform, item[1])

        encoded = session.encode_pictures(
            asked(), parts, title=self.name, total=self.num_pictures or None, weigh=lambda item: len(item[1])
        )
        for (picture, looked_at), views in encoded:
            for number, box in enumerate(looked_at):
                embedding = views if isinstance(views, BadSampleError) else views[number]
                outside = BadSampleError("box_outside", f"{box} lies outside of {picture.name}")
                found[View(picture.name, box)] = outside if embedding is None else embedding
        kept = [case for case in cases if self._is_whole(case, found, report)]
        report.num_read = len(kept)
        if not kept:
            raise ValueError(f"no image of {self.name} can be evaluated: {report}")
        rows = {view: row for row, view in enumerate(dict.fromkeys(view for case in kept for view in case.views))}
        text, row_of = _encode_distinct(session, [text for case in kept for text in case.texts])
        return Features(
            tensors={"image": torch.stack([found[view] for view in rows]), "text": text},  # type: ignore[misc]
            header={
                "keys": [case.key for case in kept],
                "pictures": [case.views[0].picture for case in kept],
                "views": [[rows[view] for view in case.views] for case in kept],
                "texts": [[row_of[text] for text in case.texts] for case in kept],
                "right": [list(case.right) for case in kept],
                "groups": [case.group for case in kept],
            },
            report=report,
        )

    def _is_whole(self, case: Case, found: dict[View, Tensor | BadSampleError], report: SkipReport) -> bool:
        """Return whether all pictures of a case were encoded; a report is told what is wrong with the first other."""
        for view in case.views:
            error = found[view]
            if isinstance(error, BadSampleError):
                report.add(error.skip(key=case.key, shard=self.path))
                return False
        return True


def _encode_distinct(session: Session, texts: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Return the embeddings of the texts that differ for the model, and every text's row.

    Texts that become the same ids have one row, such as `a cat, a dog` and `a cat , a dog`: encoded in two batches,
    their embeddings would differ in the last bit, and one of them would be said to be better.
    """
    distinct = list(dict.fromkeys(texts))
    first: dict[bytes, str] = {}
    ids = encode_each(distinct, lambda part: session.clip.tokenizer(part).numpy(), batch_size=session.batch_size)
    same_as = {text: first.setdefault(row.tobytes(), text) for text, row in zip(distinct, ids, strict=True)}
    rows = {text: row for row, text in enumerate(first.values())}
    return session.encode_texts(list(rows)), {text: rows[same] for text, same in same_as.items()}

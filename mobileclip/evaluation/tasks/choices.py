"""Multiple-choice tasks, in which a model must select the correct text or image, and their metrics."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from statistics import fmean

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.evaluation.data import Benchmark, fingerprint, folder_content, hash_of
from mobileclip.evaluation.features import Features, Session
from mobileclip.evaluation.intervals import Outcomes, class_weights, clustered_outcomes, outcomes_of
from mobileclip.evaluation.metrics import association_score, rank_captions, require_embeddings
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.tasks.task import Task
from mobileclip.evaluation.tasks.zero_shot import recall_metrics
from mobileclip.inference.bulk_encoding import views_of
from mobileclip.inference.encoding import encode_each
from mobileclip.inference.image_text_model import Views

_MAX_IMAGE_BYTES = 1 << 28
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)

# Left, top, right and bottom, in pixels; right and bottom are exclusive.
Box = tuple[int, int, int, int]


@attrs.frozen
class View:
    """An image of a multiple-choice case, or a box cropped from the image.

    Args:
        image: name of the image.
        box: box to crop, in pixels of the stored image (before EXIF rotation); None for the whole image.
    """

    image: str
    box: Box | None = None


@attrs.frozen(kw_only=True)
class Case:
    """A multiple-choice case: images and texts, with the indices of the correct choices.

    Args:
        key: name of the case in reports.
        views: one image, or several images to choose from.
        texts: one text, or several texts to choose from.
        right: indices of the correct choices. If there are as many texts as images, the text and the image with
            the same index are a pair.
        group: name of the group of cases that the case belongs to, such as a relation; empty without groups.
    """

    key: str
    views: tuple[View, ...] = attrs.field(validator=attrs.validators.min_len(1))
    texts: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    right: tuple[int, ...] = (0,)
    group: str = ""


@attrs.frozen(kw_only=True)
class CaseImage:
    """An image that is in memory or can be read.

    Args:
        name: name of the image.
        content: the encoded image, or candidate paths or URLs in order of preference, or the error that `read` raises.
    """

    name: str
    content: bytes | Sequence[str] | BadSampleError = attrs.field(repr=False)

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            BadSampleError: with the reason `image_missing` or `image_unreadable`.
            OSError: if the image file exists but cannot be read, or a store is unreachable.
        """
        if isinstance(self.content, BadSampleError):
            raise self.content
        if isinstance(self.content, bytes):
            return self.content
        for address in self.content:
            with suppress(FileNotFoundError, NotADirectoryError):
                return storage.read_bytes(address, limit=_MAX_IMAGE_BYTES)
        others = "; files with other image extensions are missing too" if len(self.content) > 1 else ""
        raise BadSampleError("image_missing", f"{self.content[0]} is missing{others}")


def find_case_images(images: str, names: Sequence[str]) -> Iterator[CaseImage]:
    """Yield the images with the given names: from a folder in the given order, from a zip file in storage order.

    Args:
        images: path or URL of a zip file or a folder.
        names: unique names of the files, with or without the extension. In a folder, a name may include subfolders; a
            name in a zip file has no subfolders.

    Raises:
        ValueError: if `images` ends with `.zip` but is not a zip file.
        OSError: if the zip file cannot be read, or a store is unreachable.
    """
    if not images.endswith(".zip"):
        for name in names:
            endings = [""] if _extension(name) in IMAGE_EXTENSIONS else [f".{one}" for one in IMAGE_EXTENSIONS]
            yield CaseImage(name=name, content=[storage.join(images, f"{name}{ending}") for ending in endings])
        return
    with storage.open_read(images) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{images} is not a zip file, or is truncated: {error}; download the file again") from None
        with archive:
            yield from _in_zip(images, archive, names)


def _in_zip(images: str, archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[CaseImage]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        file = entry.filename.rpartition("/")[2]
        if _extension(file) in IMAGE_EXTENSIONS:
            for name in (file, file.rpartition(".")[0]):
                entries.setdefault(name, entry)
    for name in names:
        if name not in entries:
            yield CaseImage(name=name, content=BadSampleError("image_missing", f"{images} has no image {name!r}"))
    # Read forwards, since a web server serves sequential reads faster.
    for name in sorted(set(names) & entries.keys(), key=lambda name: entries[name].header_offset):
        yield CaseImage(name=name, content=_from_zip(archive, entries[name]))


def _from_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | BadSampleError:
    if entry.file_size > _MAX_IMAGE_BYTES:
        return BadSampleError(
            "image_unreadable", f"the image has {entry.file_size:,} bytes, more than {_MAX_IMAGE_BYTES:,}"
        )
    try:
        return archive.read(entry)
    except _READ_ERRORS as error:
        return BadSampleError("image_unreadable", f"{type(error).__name__}: {error}")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


CaseOrImage = Case | CaseImage
Scored = tuple[dict[str, float], Outcomes]


@attrs.frozen(kw_only=True)
class ChoiceTask(Task):
    """A task with multiple-choice cases, images and a metric.

    Args:
        key: key of the task in results.
        name: name of the task in tables.
        path: folder or URL of the data.
        load_cases: function that yields cases and images, and records skipped cases in the report. The function yields
            each image once, after all cases that show the image.
        compute_metrics: function that returns two results computed from the features: the metrics, including the main
            metric, and the outcomes of the main metric.
        num_images: approximate number of images; 0 if unknown.
        benchmark: data set that holds the images; None if the images are files in `path`.
        orders: hash of the word orders in the cases; empty for a task without word orders.
    """

    key: str
    name: str
    path: str
    load_cases: Callable[[SkipReport], Iterable[CaseOrImage]] = attrs.field(repr=False)
    compute_metrics: Callable[[Features], Scored] = attrs.field(repr=False)
    num_images: int = 0
    benchmark: Benchmark | None = attrs.field(default=None, repr=False)
    orders: str = ""

    def content(self) -> str | None:
        """Return a hash of the task's data; None for data on a web server, which cannot list files."""
        files = folder_content(self.path) if self.benchmark is None else fingerprint(self.benchmark)
        return None if files is None else hash_of([self.key, self.path, files, self.orders])

    def features(self, session: Session) -> Features:
        """Return one embedding for each view of the images, and one for each distinct sequence of token ids.

        The lists in the header have one item per case: `keys`; `images`, the name of the first image; `views` and
        `texts`, row indices of the embeddings; `right`; and `groups`.

        Returns:
            the features, with a report that counts cases. A case with an unusable image is skipped; the
            reason is image_missing, image_unreadable, box_outside, or a decoding error whose name starts with `image_`.

        Raises:
            ValueError: if no case is left; the message gives the reasons.
            OSError: if the images cannot be read.
        """
        return session.cached_features(self.key, self.content, self._encoded)

    def score(self, features: Features) -> DatasetResult:
        """Return the metrics over the usable cases."""
        metrics, outcomes = self.compute_metrics(features)
        report = features.report
        return DatasetResult(
            key=self.key,
            dataset=self.name,
            metrics=metrics,
            num_images=report.num_read,
            num_skipped=report.num_skipped,
            report=report,
            outcomes=outcomes,
        )

    def _encoded(self, session: Session) -> Features:
        report, cases = SkipReport(), []
        found: dict[View, Tensor | BadSampleError] = {}
        boxes: dict[str, dict[Box | None, None]] = {}

        def asked() -> Iterator[tuple[CaseImage, tuple[Box | None, ...]]]:
            for one in self.load_cases(report):
                if isinstance(one, Case):
                    cases.append(one)
                    for view in one.views:
                        boxes.setdefault(view.image, {})[view.box] = None
                elif one.name in boxes:
                    yield one, tuple(boxes[one.name])

        def parts(item: tuple[CaseImage, tuple[Box | None, ...]]) -> Views:
            return views_of(item[0].read(), session.clip.transform, item[1])

        encoded = session.encode_images(
            asked(), parts, title=self.name, total=self.num_images or None, weigh=lambda item: len(item[1])
        )
        for (image, looked_at), views in encoded:
            for number, box in enumerate(looked_at):
                embedding = views if isinstance(views, BadSampleError) else views[number]
                outside = BadSampleError("box_outside", f"box {box} lies outside the image {image.name}")
                found[View(image.name, box)] = outside if embedding is None else embedding
        kept = [case for case in cases if self._is_whole(case, found, report)]
        report.num_read = len(kept)
        if not kept:
            raise ValueError(f"no case of {self.name} is usable: {report}")
        rows = {view: row for row, view in enumerate(dict.fromkeys(view for case in kept for view in case.views))}
        text, row_of = _encode_distinct(session, [text for case in kept for text in case.texts])
        return Features(
            tensors={"image": torch.stack([found[view] for view in rows]), "text": text},  # type: ignore[misc]
            header={
                "keys": [case.key for case in kept],
                "images": [case.views[0].image for case in kept],
                "views": [[rows[view] for view in case.views] for case in kept],
                "texts": [[row_of[text] for text in case.texts] for case in kept],
                "right": [list(case.right) for case in kept],
                "groups": [case.group for case in kept],
            },
            report=report,
        )

    def _is_whole(self, case: Case, found: dict[View, Tensor | BadSampleError], report: SkipReport) -> bool:
        """Return whether all images of a case are encoded; if not, record the first error in the report."""
        for view in case.views:
            error = found[view]
            if isinstance(error, BadSampleError):
                report.add(error.skip(key=case.key, shard=self.path))
                return False
        return True


def _encode_distinct(session: Session, texts: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Return the embeddings of texts with distinct token ids, and the row of each text.

    Texts with the same token ids, such as `a cat, a dog` and `a cat , a dog`, share a row. If equal ids were
    encoded in two batches, the embeddings could differ in the last bit, and one text would wrongly get a higher score.
    """
    distinct = list(dict.fromkeys(texts))
    first: dict[bytes, str] = {}
    ids = encode_each(distinct, lambda part: session.clip.tokenizer(part).numpy(), batch_size=session.batch_size)
    same_as = {text: first.setdefault(row.tobytes(), text) for text, row in zip(distinct, ids, strict=True)}
    rows = {text: row for row, text in enumerate(first.values())}
    return session.encode_texts(list(rows)), {text: rows[same] for text, same in same_as.items()}


PERTURBATIONS = ("nouns_and_adjectives", "all_but_nouns_and_adjectives", "within_trigrams", "trigrams")
"""What each of ARO's word orders shuffles: (1) nouns among themselves and adjectives among themselves; (2) all other
words and punctuation; (3) the words within each trigram; (4) the trigrams."""

_CHUNK = 4096
_MANY = "10-12"
# For each published metric, the numbers of candidates of the cases that the metric covers.
_CANDIDATES = {"5": {5}, "6": {6}, "10": {10}, "12": {12}, "5-6": range(7), _MANY: range(10, sys.maxsize)}


def score_pairs(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return `accuracy`: the fraction of cases whose true caption is more similar to the image than the false caption.

    A case counts as wrong if both captions have the same token ids, that is, if the swap did not change the sentence.
    Other ties count as half correct. In the outcomes, cases about the same image count as one.
    """
    right = _beats(*_compared(features))[:, 0]
    accuracy = float(right.mean())
    return {"accuracy": accuracy, MAIN_METRIC: accuracy}, clustered_outcomes(features.header["images"], right.numpy())


def score_groups(features: Features, counted: Sequence[str]) -> tuple[dict[str, float], Outcomes]:
    """Return `macro_accuracy` (the main metric), `accuracy/GROUP` of each group in `counted`, and `accuracy`.

    Args:
        features: features of cases with a true and a false caption; `score_pairs` defines a correct case.
        counted: names of the groups that the main metric averages.

    Raises:
        ValueError: if a group in `counted` has no case, since a mean over fewer groups is not comparable.
    """
    right, groups = _beats(*_compared(features))[:, 0], features.header["groups"]
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    absent = [group for group in counted if group not in members]
    if absent:
        raise ValueError(
            f"the macro accuracy needs all {len(counted)} groups, but {len(absent)} of them have no usable image: "
            f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
        )
    by_group = {group: float(right[members[group]].mean()) for group in counted}
    macro = sum(by_group.values()) / len(by_group)
    metrics = {MAIN_METRIC: macro, "macro_accuracy": macro, "accuracy": float(right.mean())}
    kept = [index for index, group in enumerate(groups) if group in by_group]
    images = [features.header["images"][index] for index in kept]
    outcomes = clustered_outcomes(images, right[kept].numpy(), class_weights([groups[index] for index in kept]))
    return metrics | {f"accuracy/{group}": accuracy for group, accuracy in by_group.items()}, outcomes


def score_orders(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return the precision at 1 of the true caption, the chance level, and the accuracy against each word order.

    `precision@1` is the main metric, `chance` is the precision of random guessing, and `accuracy/PERTURBATION` compares
    the true caption with one word order. As in the published benchmark, a word order with the token ids of the true
    caption or of an earlier word order is not a competitor, so `chance` may be above 1/5. Other ties count as a
    random guess among the tied captions.
    """
    scores, texts = _compared(features)
    competes = torch.zeros_like(texts, dtype=torch.bool)
    for column in range(1, texts.shape[1]):
        competes[:, column] = (texts[:, column, None] != texts[:, :column]).all(dim=1)
    better = competes & (scores > scores[:, :1])
    tied = competes & (scores == scores[:, :1])
    best = torch.where(better.any(dim=1), 0.0, 1.0 / (1 + tied.sum(dim=1).double()))
    against = _beats(scores, texts).masked_fill(texts[:, 1:] == texts[:, :1], 1.0)
    precision = float(best.mean())
    metrics = {
        MAIN_METRIC: precision,
        "precision@1": precision,
        "chance": float((1.0 / (1 + competes.sum(dim=1).double())).mean()),
        **{f"accuracy/{name}": float(against[:, index].mean()) for index, name in enumerate(PERTURBATIONS)},
    }
    return metrics, clustered_outcomes(features.header["images"], best.numpy())


def score_matches(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return Winoground's scores: image-to-caption matches, caption-to-image matches, and matches in both directions.

    `text_score` is the fraction of cases in which each image finds its caption, `image_score` the fraction in which
    each caption finds its image, and `group_score` (the main metric) the fraction with matches in both directions.
    Random guessing gives a text score of 1/4, an image score of 1/4 and a group score of 1/6.
    """
    by_text, by_image = matches(*_rows(features))
    both = (by_text & by_image).double()
    found = {"text_score": by_text.double(), "image_score": by_image.double(), "group_score": both, MAIN_METRIC: both}
    metrics = {name: float(values.mean()) for name, values in found.items()}
    return metrics, outcomes_of(features.header["keys"], both.numpy())


def matches(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each example, whether both images find their captions, and whether both captions find their images.

    Equal scores count as wrong, because the model then does not distinguish the captions or images.

    Shape:
        images, captions: `(examples, 2, dim)`; results: `(examples,)`.

    Args:
        images: image embeddings, normalised or not.
        captions: text embeddings in the order of the images, normalised or not.

    Source: Thrush et al. 2022, section 4.1.
    """
    scores = F.normalize(images.float(), dim=-1) @ F.normalize(captions.float(), dim=-1).transpose(1, 2)
    own = scores.diagonal(dim1=1, dim2=2)
    others = scores.flip(2).diagonal(dim1=1, dim2=2)
    return (own > others).all(dim=1), (own > others.flip(1)).all(dim=1)


def score_associations(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return WinoGAViL's Jaccard scores for finding the images that people associated with a cue.

    `avg_jaccard_score` is the mean of `association_score` over all cases. Over the cases with N candidates,
    `jaccard_score_N` is the mean score and `count_N` is the number of cases. N is 5, 6, 10, 12, 5-6 (at most six) or
    10-12 (at least ten); an N without cases has no metrics. The main metric is `jaccard_score_10-12`.

    Raises:
        ValueError: if no case has at least ten candidates.

    Source: the public evaluation of DataComp (Gadre et al. 2023).
    """
    image, text = _embeddings(features)
    keys, views, texts, right = (features.header[name] for name in ("keys", "views", "texts", "right"))
    scores = []
    for candidates, (cue,), chosen in zip(views, texts, right, strict=True):
        associated = torch.zeros(len(candidates), dtype=torch.bool).index_fill_(0, torch.tensor(chosen), value=True)
        scores.append(association_score(image[candidates] @ text[cue], associated))
    metrics = {"avg_jaccard_score": fmean(scores)}
    for name, sizes in _CANDIDATES.items():
        own = [score for score, candidates in zip(scores, views, strict=True) if len(candidates) in sizes]
        if own:
            metrics |= {f"jaccard_score_{name}": fmean(own), f"count_{name}": len(own)}
    many = [index for index, candidates in enumerate(views) if len(candidates) in _CANDIDATES[_MANY]]
    if not many:
        raise ValueError(f"no case with at least ten candidates is usable: {features.report}")
    metrics[MAIN_METRIC] = metrics[f"jaccard_score_{_MANY}"]
    return metrics, outcomes_of([keys[index] for index in many], [scores[index] for index in many])


def score_retrieval(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return the retrieval metrics of images with one caption each; `mean_recall@1` is the main metric."""
    keys = features.header["keys"]
    image, text = (rows[:, 0] for rows in _rows(features))
    ranking = rank_captions(image, text, [1] * len(keys))
    metrics = recall_metrics(ranking.recall)
    return metrics | {MAIN_METRIC: metrics["mean_recall@1"]}, outcomes_of(keys, ranking.caption_hits.numpy())


def _rows(features: Features) -> tuple[Tensor, Tensor]:
    """Return the embeddings of each case's images and texts.

    All cases must have the same number of images, and the same number of texts.

    Shape:
        results: `(cases, images, dim)` and `(cases, texts, dim)`.
    """
    image, text = features.tensors["image"], features.tensors["text"]
    return image[torch.tensor(features.header["views"])], text[torch.tensor(features.header["texts"])]


def _embeddings(features: Features) -> tuple[Tensor, Tensor]:
    """Return the unit-length embeddings of images and texts."""
    image, text = features.tensors["image"], features.tensors["text"]
    require_embeddings("image", image)
    require_embeddings("text", text, dim=image.shape[1])
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def _compared(features: Features) -> tuple[Tensor, Tensor]:
    """Return, for each case, the similarity of the image to each text, and the row of each text.

    Shape:
        results: `(cases, texts)`, with the true text first.
    """
    image, text = _embeddings(features)
    views, texts = torch.tensor(features.header["views"])[:, 0], torch.tensor(features.header["texts"])
    scores = [
        (image[views[start : start + _CHUNK], None] * text[texts[start : start + _CHUNK]]).sum(dim=-1)
        for start in range(0, len(views), _CHUNK)
    ]
    return torch.cat(scores), texts


def _beats(scores: Tensor, texts: Tensor) -> Tensor:
    """Return, for each false text, 1 if the true text has a higher score, 0.5 for a tie, and 0 otherwise.

    The value is also 0 if the false text has the token ids of the true text.

    Shape:
        result: `(cases, texts - 1)`.
    """
    true, false = scores[:, :1], scores[:, 1:]
    beats = (true > false).double() + 0.5 * (true == false).double()
    return beats.masked_fill(texts[:, :1] == texts[:, 1:], 0.0)

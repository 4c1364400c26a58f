"""Retrieval by captions of a hundred words and more, which a model of 77 ids sees the beginning of.

    urban1k/                                         sharegpt4v/
        caption/1.txt, ...   a caption each              share-captioner_coco_lcs_sam_1246k_1107.json
        image/1.jpg, ...                                 sam/images/sa_1.jpg, ... as the file names them

ShareGPT4V's first 1,000 entries are its test set: {"image": "sam/images/sa_1.jpg", "conversations": [{...}, {"value":
"the caption"}]}.

Source: Zhang et al. 2024 (Long-CLIP, arXiv 2403.15378), and the code that it is published with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.metrics.outcomes import outcomes_of
from mobileclip.evaluation.metrics.retrieval import caption_hits
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.folder_task import FolderTask
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, TaskOptions
from mobileclip.evaluation.tasks.zero_shot.scoring import retrieval_metrics
from mobileclip.strict import split_lines

_MAX_IMAGE_BYTES = 1 << 28
_MAX_TEXT_BYTES = 1 << 20
# The whole file has a gigabyte, its first thousand entries less than two megabytes.
_MAX_HEAD_BYTES = 1 << 24
_NUM_ENTRIES = 1000
_SEPARATORS = re.compile(r"[\s,]*")
_SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"


@attrs.frozen
class _Pair:
    """A picture and its caption."""

    key: str
    address: str
    caption: str


@attrs.frozen(kw_only=True)
class LongCaptionTask(FolderTask):
    """Pictures with a long caption each, which are found for each other.

    Args:
        key, name, path: see `FolderTask`.
        pairs: what is asked.
    """

    pairs: tuple[_Pair, ...] = attrs.field(repr=lambda pairs: f"{len(pairs)} pairs")

    def evaluate(self, session: Session) -> Evaluation:
        """Return the metrics of retrieval; `mean_recall@1` counts.

        Returns:
            The report names pictures that are missing or cannot be decoded, with reasons that start with `image_`.

        Raises:
            ValueError: if no picture can be used; the message says why.
            OSError: if the images cannot be read.
        """
        report = SkipReport()

        def skip(pair: _Pair, error: BadSampleError) -> None:
            report.add(Skip(reason=error.reason, key=pair.key, shard=self.path, detail=error.detail))

        with session.encoding() as encoders:
            kept, image = encoders.embed_pictures(
                self.pairs, _read, keep=lambda pair: pair, skip=skip, title=self.name, total=len(self.pairs)
            )
            if not kept:
                raise ValueError(f"no image of {self.name} can be evaluated: {report}")
            text = encoders.encode_texts([pair.caption for pair in kept])
        report.num_read = len(kept)
        counts = [1] * len(kept)
        keys = tuple(pair.key for pair in kept)
        metrics = retrieval_metrics(Features.of(keys=keys, image=image, text=text, num_captions=torch.tensor(counts)))
        return Evaluation(
            result=DatasetResult(
                key=self.key,
                dataset=self.name,
                metrics={**metrics, MAIN_METRIC: metrics["mean_recall@1"]},
                num_images=len(kept),
                num_skipped=report.num_skipped,
            ),
            report=report,
            outcomes=outcomes_of(keys, caption_hits(image, text, counts).cpu().numpy()),
        )


def open_urban1k(found: FoundTask, _: TaskOptions) -> LongCaptionTask:
    """Return Urban-1k, having read its captions; of each, the first line, as the public code reads it.

    Raises:
        ValueError: if captions or pictures are missing; the message names the first.
        OSError: if a store cannot be reached.
    """
    return _task(found, _urban1k)


def open_sharegpt4v(found: FoundTask, _: TaskOptions) -> LongCaptionTask:
    """Return ShareGPT4V's test set, having read its captions, line breaks as blanks.

    Raises:
        ValueError: if the file is missing or malformed; the message says which entry.
        OSError: if a store cannot be reached.
    """
    return _task(found, _sharegpt4v)


def _task(found: FoundTask, pairs: Callable[[str], Iterator[_Pair]]) -> LongCaptionTask:
    there = tuple(pairs(found.path))
    if not there:
        raise ValueError(f"there is no caption of {found.name} in {found.path}")
    return LongCaptionTask(key=found.key, name=found.name, path=found.path, pairs=there)


def _urban1k(path: str) -> Iterator[_Pair]:
    files = storage.find_files(path)
    images = {
        name.removeprefix("image/").rpartition(".")[0]: name
        for name in files
        if name.startswith("image/") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    }
    for name in sorted(name for name in files if name.startswith("caption/") and name.endswith(".txt")):
        key = name.removeprefix("caption/").removesuffix(".txt")
        if key not in images:
            raise ValueError(f"{storage.join(path, name)} has no picture beside it: there is no image/{key}.jpg")
        text = storage.read_bytes(storage.join(path, name), limit=_MAX_TEXT_BYTES).decode("utf-8-sig", "replace")
        yield _Pair(key, storage.join(path, images[key]), (split_lines(text) or [""])[0])


def _sharegpt4v(path: str) -> Iterator[_Pair]:
    place = storage.join(path, _SHAREGPT4V)
    if not storage.exists(place):
        raise ValueError(f"{place} is missing: the captions of ShareGPT4V")
    with storage.open_read(place) as stream:
        head = stream.read(_MAX_HEAD_BYTES).decode("utf-8", "ignore")
    for index, entry in enumerate(_first_objects(head, place)):
        name = entry.get("image")
        try:
            caption = entry["conversations"][1]["value"]
        except (KeyError, IndexError, TypeError):
            caption = None
        if not isinstance(name, str) or not isinstance(caption, str) or not _is_below(name):
            raise ValueError(
                f"{place}, entry {index}: expected an image below the folder and a caption in conversations[1].value, "
                f"got {str(entry)[:60]}"
            )
        yield _Pair(name, storage.join(path, name), caption.replace("\n", " "))


def _first_objects(head: str, place: str) -> Iterator[dict[str, Any]]:
    """Yield the first thousand objects of a JSON list, of which only the beginning was read."""
    decoder, position = json.JSONDecoder(), head.find("[") + 1
    if not position:
        raise ValueError(f"{place} holds no list of entries, but {head[:60]!r}")
    for count in range(_NUM_ENTRIES):
        position = _SEPARATORS.match(head, position).end()  # type: ignore[union-attr]  # it matches nothing as well
        if head[position : position + 1] in ("]", ""):
            return
        try:
            entry, position = decoder.raw_decode(head, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}, entry {count} is no JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{place}, entry {count} is {str(entry)[:60]!r}, expected an object")
        yield entry


def _is_below(name: str) -> bool:
    """Return whether a path leads to a file below the folder that it is relative to."""
    return not any(mark in name for mark in ("\\", "\0", ":")) and not {"", ".", ".."} & set(name.split("/"))


def _read(pair: _Pair) -> bytes:
    try:
        return storage.read_bytes(pair.address, limit=_MAX_IMAGE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise BadSampleError("image_missing", f"{pair.address} is missing") from None

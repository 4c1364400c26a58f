"""Retrieval with captions in several languages.

Each model encodes the images once, and ranks the captions of each language separately. The files:

    xtd10/                                        xm3600/
        test_image_names.txt    one name per line       captions.jsonl    {"image/key": "...", "de": {"caption": [...]}}
        test_1kcaptions_de.txt  one caption per line    images/           KEY.jpg, ...
        images/                 images with these names

For Crossmodal-3600, as in CLIP_benchmark, only the first caption of an image in each language counts. The caption files
of XTD10 may be in subfolders, as published. Other data sets state the language of captions in a field `language`.

Source: Aggarwal and Kale 2020 (XTD10, arXiv 2012.05107); Thapliyal et al. 2022 (Crossmodal-3600, arXiv 2205.12522).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from statistics import fmean
from typing import Any

import attrs
import torch

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.datasets.sources.base import read_image
from mobileclip.evaluation.data import Benchmark, fingerprint, folder_content
from mobileclip.evaluation.features import Features, Session
from mobileclip.evaluation.intervals import class_weights, clustered_outcomes
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.spec import TaskOptions
from mobileclip.evaluation.tasks.choice_files import read_entries
from mobileclip.evaluation.tasks.task import FoundTask, Task
from mobileclip.evaluation.tasks.zero_shot import score_retrieval
from mobileclip.strict import split_lines

LANGUAGE = "language"
"""Name of the table column or field that holds the language of a caption."""

_MAX_BYTES = 1 << 30
_NAMES, _CAPTIONS, _LINES = "test_image_names.txt", "test_1kcaptions_", "captions.jsonl"


@attrs.define
class _CaptionedImage:
    """An image, with the (language, caption) pairs read so far."""

    key: str
    read: Callable[[], bytes]
    captions: list[tuple[str, str]]


@attrs.frozen(kw_only=True)
class MultilingualTask(Task):
    """Images with captions in several languages.

    Args:
        key: key of the task in results.
        name: name of the task in tables.
        hashed: function that returns a hash of the data, or None if the hash is unknown.
        images: function that yields the images and records skipped samples in the report. The function may add
            captions to an image after yielding the image.
    """

    key: str
    name: str
    hashed: Callable[[], str | None]
    images: Callable[[SkipReport], Iterator[_CaptionedImage]]

    def content(self) -> str | None:
        """Return a hash of the data."""
        return self.hashed()

    def features(self, session: Session) -> Features:
        """Return the embeddings of images and captions, and the image and language of each caption."""
        return session.cached_features(self.key, self.content, self._encoded)

    def _encoded(self, session: Session) -> Features:
        report = SkipReport()
        kept, image = session.embed_images(
            self.images(report),
            lambda image: image.read(),
            keep=lambda image: (image.key, image.captions),
            report=report,
            title=self.name,
        )
        said = sorted((language, number, text) for number, (_, own) in enumerate(kept) for language, text in own)
        if not said:
            raise ValueError(f"no image of {self.name} is usable: {report}")
        report.num_read = len(kept)
        languages = list(dict.fromkeys(language for language, *_ in said))
        place = {language: number for number, language in enumerate(languages)}
        return Features(
            tensors={
                "image": image,
                "text": session.encode_texts([text for *_, text in said]),
                "images": torch.tensor([number for _, number, _ in said]),
                "languages": torch.tensor([place[language] for language, *_ in said]),
            },
            header={"keys": [key for key, _ in kept], "languages": languages},
            report=report,
        )

    def score(self, features: Features) -> DatasetResult:
        """Return the retrieval metrics averaged over languages, with the metrics of each language in `parts`."""
        languages = [self._of_language(features, number) for number in range(len(features.header["languages"]))]
        parts = [
            score_retrieval(own, key=f"{self.key}/{language}", name=f"{self.name}, {language}")
            for language, own in zip(features.header["languages"], languages, strict=True)
        ]
        values = [(key, value) for part in parts if part.outcomes for key, value in part.outcomes.pairs]
        return DatasetResult(
            key=self.key,
            dataset=f"{self.name}, mean of {len(parts)} languages",
            metrics={name: fmean(part.metrics[name] for part in parts) for name in parts[0].metrics},
            num_images=len(features.keys),
            num_skipped=features.report.num_skipped,
            report=features.report,
            outcomes=clustered_outcomes(
                [key for key, _ in values],
                [value for _, value in values],
                class_weights([number for number, own in enumerate(languages) for _ in own.keys]),
            ),
            parts=tuple(parts),
        )

    def _of_language(self, features: Features, number: int) -> Features:
        """Return the features of the images and captions in one language."""
        chosen = features.tensors["languages"] == number
        images, counts = torch.unique_consecutive(features.tensors["images"][chosen], return_counts=True)
        return Features.of(
            keys=[features.keys[image] for image in images.tolist()],
            image=features.image[images],
            text=features.text[chosen],
            num_captions=counts,
            report=features.report,
        )


def open_xtd10(found: FoundTask, _: TaskOptions) -> MultilingualTask:
    """Return XTD10: 1,000 COCO images with one caption in each of eleven languages.

    Raises:
        ValueError: if image names or captions are missing, or differ in number; the message names the file.
        OSError: if a store cannot be reached.
    """
    files = {storage.file_name(name): name for name in storage.find_files(found.path) if name.endswith(".txt")}
    captions = {name.removeprefix(_CAPTIONS)[:-4]: name for name in sorted(files) if name.startswith(_CAPTIONS)}
    if _NAMES not in files or not captions:
        raise ValueError(f"names or captions are missing: expected {_NAMES} and {_CAPTIONS}de.txt, ... in {found.path}")
    names = _lines(found.path, files[_NAMES])
    by_language = {language: _lines(found.path, files[name]) for language, name in captions.items()}
    for language, own in by_language.items():
        if len(own) != len(names):
            raise ValueError(
                f"{found.path} has {len(own)} captions in {files[captions[language]]} for {len(names)} images; "
                "expected one caption per image"
            )
    texts = {name: [(language, own[at]) for language, own in by_language.items()] for at, name in enumerate(names)}
    return _in_folder(found, {f"images/{name}": own for name, own in texts.items()})


def open_crossmodal3600(found: FoundTask, _: TaskOptions) -> MultilingualTask:
    """Return Crossmodal-3600: 3,600 images with captions in 36 languages.

    Raises:
        ValueError: if the captions are missing or malformed; the message names the line.
        OSError: if a store cannot be reached.
    """
    texts = {
        f"images/{entry.file('image/key')}.jpg": [
            (language, entry.get(language, _first_caption, "an object with a list of captions"))
            for language, own in entry.values.items()
            if isinstance(own, dict)
        ]
        for entry in read_entries(storage.join(found.path, _LINES), found.name)
    }
    return _in_folder(found, texts)


def open_languages(found: FoundTask, benchmark: Benchmark) -> MultilingualTask | None:
    """Return the multilingual task of a data set that states the language of each caption; None for any other data set.

    Args:
        found: key and name of the task.
        benchmark: a data set with captions.
    """
    source = benchmark.source
    if source is None:
        return None
    first = next((sample for unit in source.units() for sample in unit.described(SkipReport(log=False))), None)
    if first is None or LANGUAGE not in first.metadata:
        return None

    def images(report: SkipReport) -> Iterator[_CaptionedImage]:
        known: dict[bytes, list[tuple[str, str]]] = {}
        for unit in source.units():
            for sample in unit.read(report):
                assert sample.image is not None, "expected a unit to return images"
                said = sample.metadata.get(LANGUAGE)
                own = [said] * len(sample.captions) if isinstance(said, str) else said
                if not isinstance(own, list) or len(own) != len(sample.captions) or not all(own):
                    detail = (
                        f"{LANGUAGE} is {str(said)[:80]!r}, expected one language for each of "
                        f"{len(sample.captions)} captions"
                    )
                    report.add(Skip(reason="no_language", key=sample.key, shard=benchmark.name, detail=detail))
                    continue
                digest = sha256(sample.image).digest()
                is_new = digest not in known
                known.setdefault(digest, []).extend(zip(map(str, own), sample.captions, strict=True))
                if is_new:
                    yield _CaptionedImage(sample.key, partial(bytes, sample.image), known[digest])

    return MultilingualTask(key=found.key, name=found.name, hashed=lambda: fingerprint(benchmark), images=images)


def _in_folder(found: FoundTask, texts: Mapping[str, list[tuple[str, str]]]) -> MultilingualTask:
    def images(_: SkipReport) -> Iterator[_CaptionedImage]:
        for name, captions in texts.items():
            address = storage.join(found.path, name)
            yield _CaptionedImage(name, partial(_image, address), captions)

    return MultilingualTask(key=found.key, name=found.name, hashed=lambda: folder_content(found.path), images=images)


def _first_caption(own: Any) -> str | None:
    captions = own.get("caption")
    return captions[0] if isinstance(captions, list) and captions and isinstance(captions[0], str) else None


def _image(address: str) -> bytes:
    return read_image(address)[0]


def _lines(folder: str, name: str) -> list[str]:
    return split_lines(storage.read_bytes(storage.join(folder, name), limit=_MAX_BYTES).decode("utf-8-sig", "replace"))

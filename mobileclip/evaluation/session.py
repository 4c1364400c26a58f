"""A model that encodes for one task after another, and features kept in files: nothing is encoded twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation.benchmark import Benchmark, fingerprint, hash_of
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.encoding import Features, find_batch_size, machine_name, num_images
from mobileclip.extras import VERSION
from mobileclip.inference.image_text_model import ImageTextModel, Views
from mobileclip.inference.kept import SUFFIX, read_kept, write_kept
from mobileclip.inference.labels import ensemble_prompts, fill_templates
from mobileclip.inference.pictures import view_of

_NOT_A_NAME = re.compile(r"[^\w.+-]+")


@attrs.frozen(kw_only=True)
class FeatureCache:
    """Features by what they depend on: the weights, how pictures are read, the contract of the inputs, and the data.

    A data set takes four bytes for each of its images, and of its captions or prompts, times the dim of the embedding:
    the 38 together about 1.4 GB a model of 512 dims.

    Args:
        folder: made where it is missing. A file that is not to the bit what was written is made again, and one that
            cannot be written is left out with a warning.
        weights_sha256: hash of the model's weights.
        model: the candidate's fingerprint.
    """

    folder: Path = attrs.field(converter=Path)
    weights_sha256: str
    model: str

    @classmethod
    def of(cls, candidate: Candidate, folder: Path | str) -> FeatureCache:
        """Return the cache of a model."""
        return cls(folder=Path(folder), weights_sha256=candidate.weights_sha256, model=candidate.fingerprint)

    def read(self, name: str, content: str) -> Features | None:
        """Return what was kept, to the bit, or None where it must be made.

        Args:
            name: of the data, for people who look into the folder.
            content: what the features depend on beside the model.
        """
        kept = read_kept(self._path(name, content))
        if kept is None:
            return None
        tensors, text = kept
        header = json.loads(text)
        return Features(tensors=tensors, header=header["header"], report=_report(header["report"]), is_kept=True)

    def write(self, name: str, content: str, features: Features) -> None:
        """Keep what `read` returns."""
        text = json.dumps({"header": dict(features.header), "report": _report_values(features.report)})
        write_kept(self._path(name, content), features.tensors, text)

    def _path(self, name: str, content: str) -> Path:
        key = hash_of([self.model, content])
        return self.folder / self.weights_sha256[:16] / f"{_NOT_A_NAME.sub('-', name)[:80]}-{key[:16]}{SUFFIX}"


def _report_values(report: SkipReport) -> dict[str, Any]:
    return {
        "num_read": report.num_read,
        "counts": dict(report.counts),
        "named": [attrs.asdict(skip) for skips in report.named.values() for skip in skips],
    }


def _report(values: dict[str, Any]) -> SkipReport:
    report = SkipReport(num_read=values["num_read"], counts=Counter(values["counts"]))
    for one in values["named"]:
        report.named.setdefault(one["reason"], []).append(Skip(**one))
    return report


# These take seconds.
_FEW_TEXTS = 256


class Keyed(Protocol):
    """Interface of anything with a key."""

    @property
    def key(self) -> str:
        """The name in a report."""


Item = TypeVar("Item")
KeyedItem = TypeVar("KeyedItem", bound=Keyed)
Kept = TypeVar("Kept")


def _as_clip(model: DualEncoder | ImageTextModel) -> ImageTextModel:
    return ImageTextModel.of(model) if isinstance(model, DualEncoder) else model


@attrs.define(eq=False)
class Session:
    """A model which encodes for one task after another; no text is encoded twice. Embeddings are not normalised.

    Args:
        clip: the model; of a dual encoder, in any mode, a folded copy.
        batch_size: images, or texts, encoded at once, at least 1.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, and, where the number of images is known, how long it takes.
        cache: where embeddings of data sets are kept; without, they are not.
    """

    clip: ImageTextModel = attrs.field(converter=_as_clip)
    batch_size: int = attrs.field(default=64, kw_only=True, validator=attrs.validators.ge(1))
    num_threads: int | None = attrs.field(default=None, kw_only=True)
    show_progress: bool = attrs.field(default=True, kw_only=True)
    cache: FeatureCache | None = attrs.field(default=None, kw_only=True)

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        *,
        batch_size: int | None = None,
        num_threads: int | None = None,
        show_progress: bool = True,
        cache: Path | str | None = None,
    ) -> Session:
        """Return the session of a candidate.

        Args:
            candidate: the model.
            batch_size: by default as many as fit into memory; see `find_batch_size`.
            num_threads: see the class.
            show_progress: see the class.
            cache: folder in which embeddings of data sets are kept.
        """
        return cls(
            candidate.clip,
            batch_size=find_batch_size(candidate.clip) if batch_size is None else batch_size,
            num_threads=num_threads,
            show_progress=show_progress,
            cache=None if cache is None else FeatureCache.of(candidate, cache),
        )

    def kept(self, name: str, content: Callable[[], str | None], make: Callable[[Session], Features]) -> Features:
        """Return features from the cache where they are there, and made and kept otherwise.

        Args:
            name: of the data, for people who look into the cache's folder.
            content: returns what the features depend on beside the model, such as a hash of the data, or None where
                nothing says, so that nothing is kept. Questions that only scoring needs are no part of it.
            make: returns the features, encoded by `clip`.

        Raises:
            ValueError: if the data change meanwhile, or nothing can be used.
        """
        before = content()
        stored = None if self.cache is None or before is None else self.cache.read(name, before)
        if stored is not None:
            return stored
        features = make(self)
        features = attrs.evolve(features, header={**features.header, **origin(self.clip), "data": before or ""})
        if content() != before:
            raise ValueError(f"{name} was changed while it was evaluated; evaluate it again when it is complete")
        if self.cache is not None and before is not None:
            self.cache.write(name, before, features)
        return features

    def pictures(self, benchmark: Benchmark) -> Features:
        """Return the embeddings of a data set's pictures, and of its captions where there are any; see `kept`.

        Raises:
            ValueError: if no image can be used, or the data set changes meanwhile.
        """
        return self.kept(benchmark.name, lambda: fingerprint(benchmark), lambda _: self._encoded(benchmark))

    def _encoded(self, benchmark: Benchmark) -> Features:
        report = SkipReport()
        samples, embeddings = self.embed_pictures(
            benchmark.samples(report),
            lambda sample: sample.image,
            keep=lambda sample: attrs.evolve(sample, image=b""),
            report=report,
            title=benchmark.name,
            total=num_images(benchmark) or None,
        )
        if not samples:
            raise ValueError(f"no image of {benchmark.name} can be evaluated: {report}")
        retrieval = benchmark.kind == "retrieval"
        metadata = [sample.metadata for sample in samples if sample.metadata is not None]
        return Features.of(
            keys=[sample.key for sample in samples],
            image=embeddings,
            text=self.encode_texts([caption for one in samples for caption in one.captions]) if retrieval else None,
            labels=None if retrieval else torch.tensor([sample.label for sample in samples]),
            num_captions=torch.tensor([len(sample.captions) for sample in samples]) if retrieval else None,
            metadata=torch.tensor(metadata) if len(metadata) == len(samples) else None,
            report=report,
        )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, in order; see `kept`.

        Shape:
            result: `(texts, dim)`.
        """

        def made(session: Session) -> Features:
            return Features(tensors={"text": session.encode_texts(texts)}, header={})

        return self.kept("texts", lambda: hash_of(list(texts)), made).text

    def features(self, benchmark: Benchmark) -> tuple[Features, SkipReport]:
        """Return the embeddings of a data set with those of its prompts or captions, and what could not be used.

        Raises:
            ValueError: if no image can be used, or the data set changes meanwhile.
        """
        features = self.pictures(benchmark)
        if benchmark.kind == "classification":
            prompts = fill_templates(benchmark.class_names, benchmark.templates)
            features = features.with_tensors(text=self.texts(prompts))
        return features, features.report

    def embed_pictures(
        self,
        items: Iterable[KeyedItem],
        content: Callable[[KeyedItem], bytes],
        *,
        keep: Callable[[KeyedItem], Kept],
        report: SkipReport,
        title: str,
        total: int | None = None,
    ) -> tuple[list[Kept], Tensor]:
        """Return what is kept of the items whose pictures can be used, in order, and the embeddings.

        Shape:
            embeddings: `(items that are kept, dim)`; `(0,)` where there is none.

        Args:
            items: drawn from in the caller's thread.
            content: the encoded picture of an item; called in several threads. A `BadSampleError` leaves the item out.
            keep: what is returned of an item, without its picture.
            report: told of every item that is left out, by its key, which was counted as one that was read.
            title: of the bar, and what the items are of.
            total: number of items, where it is known.
        """
        kept: list[Kept] = []
        rows: list[Tensor] = []
        views = self.encode_pictures(
            items, lambda item: [view_of(content(item), self.clip.transform)], title=title, total=total
        )
        for item, found in views:
            if isinstance(found, BadSampleError):
                report.num_read -= 1
                report.add(found.skip(key=item.key, shard=title))
            else:
                kept.append(keep(item))
                rows += [row for row in found if row is not None]
        return kept, torch.stack(rows) if rows else torch.empty(0)

    def encode_pictures(
        self,
        items: Iterable[Item],
        views: Callable[[Item], Views],
        *,
        title: str,
        total: int | None = None,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> Iterator[tuple[Item, list[Tensor | None] | BadSampleError]]:
        """Yield items, in order, with the embeddings of their views; see `ImageTextModel.encode_views`."""
        return self.clip.encode_views(
            items,
            views,
            title=title,
            total=total,
            weigh=weigh,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            progress=self.show_progress,
        )

    def encode_texts(self, texts: Sequence[str], *, show_progress: bool | None = None) -> Tensor:
        """Return the embeddings; every text is encoded once.

        Shape:
            result: `(texts, dim)`, float32 on the CPU.

        Args:
            texts: at least one.
            show_progress: whether to show how far it is, where there are many; by default as of pictures.

        Raises:
            ValueError: if there is no text.
        """
        if not texts:
            raise ValueError("there are no texts to embed")
        shown = self.show_progress if show_progress is None else show_progress
        return self.clip.encode_text(
            texts,
            normalize=False,
            keep=True,
            batch_size=self.batch_size,
            progress=shown and len(texts) > _FEW_TEXTS,
        )

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Return one unit-length embedding per class name, the ensemble over `templates`.

        Shape:
            result: `(classes, dim)`.

        Args:
            class_names: in the order of the labels.
            templates: see `fill_templates`.

        Raises:
            ValueError: see `fill_templates`.
        """
        text = self.encode_texts(fill_templates(class_names, templates))
        return ensemble_prompts(text.reshape(len(class_names), len(templates), -1))


def origin(clip: ImageTextModel) -> dict[str, str]:
    """Return when, by which version and where the features that a model makes now are made."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"when": when, "version": VERSION, "device": machine_name(clip)}

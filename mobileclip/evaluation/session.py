"""A model that is prepared once and encodes for one task after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.cache import FeatureCache
from mobileclip.evaluation.candidates import Candidate
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.datasets.content import fingerprint, hash_of
from mobileclip.evaluation.encoding.batch_size import find_batch_size
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize, Transform
from mobileclip.evaluation.encoding.encoders import Encoders, encoding_threads, fastest_form
from mobileclip.evaluation.encoding.features import Features, extract_features
from mobileclip.evaluation.encoding.timing import machine_name
from mobileclip.evaluation.metrics.classification import ensemble_prompts, fill_templates
from mobileclip.extras import VERSION
from mobileclip.inference.kept_texts import KeptTexts
from mobileclip.inference.modes import evaluating
from mobileclip.inference.text_towers import TextSide


@attrs.define(eq=False)
class Session:
    """A model with its preprocessing, which encodes for one task after another; no text is encoded twice.

    A dual encoder of the library is folded and prepared, once and as a copy, so that the model's weights must not
    change meanwhile. On a CPU small batches are encoded side by side, by as many threads as torch computes with. Other
    models, and what `mobileclip.optimize` has prepared, are taken as they are.

    Args:
        model: evaluated in evaluation mode, and left in the mode it came in.
        transform: from a picture, RGB and upright, to the model's input.
        tokenize: from texts to the model's ids.
        batch_size: images, or texts, encoded at once, at least 1.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, and, where the number of images is known, how long it takes.
        cache: where embeddings of data sets are kept; without, they are not.
        text_sides: what encodes texts, where several text towers share them; the model's own is the first.
    """

    model: ImageTextModel
    transform: Transform = attrs.field(kw_only=True)
    tokenize: Tokenize = attrs.field(kw_only=True)
    batch_size: int = attrs.field(default=64, kw_only=True, validator=attrs.validators.ge(1))
    num_threads: int | None = attrs.field(default=None, kw_only=True)
    show_progress: bool = attrs.field(default=True, kw_only=True)
    cache: FeatureCache | None = attrs.field(default=None, kw_only=True)
    text_sides: tuple[TextSide, ...] = attrs.field(default=(), kw_only=True)
    _ready: ImageTextModel | None = attrs.field(default=None, init=False)
    _known_texts: KeptTexts = attrs.field(factory=KeptTexts, init=False)

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
        session = cls(
            candidate.model,
            transform=candidate.transform,
            tokenize=candidate.tokenize,
            num_threads=num_threads,
            show_progress=show_progress,
            cache=None if cache is None else FeatureCache.of(candidate, cache),
            text_sides=candidate.text_sides,
        )
        if batch_size is None:
            with session.encoding() as encoders:
                batch_size = find_batch_size(encoders, candidate.image_size)
        session.batch_size = batch_size
        return session

    @contextmanager
    def encoding(self) -> Iterator[Encoders]:
        """Hold the model ready to encode, without gradients, then give every module its mode back."""
        first = next(self.model.parameters())
        device, dtype = first.device, first.dtype
        with evaluating(self.model), torch.inference_mode(), encoding_threads(self.model, device) as threads:
            if self._ready is None:
                self._ready = fastest_form(self.model)
            yield Encoders(
                model=self._ready,
                transform=self.transform,
                tokenize=self.tokenize,
                device=device,
                dtype=dtype,
                batch_size=self.batch_size,
                num_threads=self.num_threads,
                show_progress=self.show_progress,
                known_texts=self._known_texts,
                threads=threads,
                text_sides=self.text_sides,
            )

    def kept(self, name: str, content: Callable[[], str | None], make: Callable[[Encoders], Features]) -> Features:
        """Return features from the cache where they are there, and made and kept otherwise.

        Args:
            name: of the data, for people who look into the cache's folder.
            content: returns what the features depend on beside the model, such as a hash of the data, or None where
                nothing says, so that nothing is kept. Questions that only scoring needs are no part of it.
            make: encodes.

        Raises:
            ValueError: if the data change meanwhile, or nothing can be used.
        """
        before = content()
        stored = None if self.cache is None or before is None else self.cache.read(name, before)
        if stored is not None:
            return stored
        with self.encoding() as encoders:
            features = make(encoders)
        features = attrs.evolve(features, header={**features.header, **origin(self.model), "data": before or ""})
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
        return self.kept(
            benchmark.name, lambda: fingerprint(benchmark), lambda encoders: extract_features(encoders, benchmark)
        )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, in order; see `kept`.

        Shape:
            result: `(texts, dim)`.
        """

        def made(encoders: Encoders) -> Features:
            return Features(tensors={"text": encoders.encode_texts(texts)}, header={})

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

    def embed_images(self, batches: Iterable[Tensor]) -> Tensor:
        """Return the embeddings of preprocessed images, as the model gives them (not normalised).

        Shape:
            batches: each `(batch, 3, size, size)`; result: `(images, dim)`, float32 on the CPU.

        Raises:
            ValueError: if there is no image.
        """
        with self.encoding() as encoders:
            embeddings = [encoders.encode_images(batch) for batch in batches]
        if not embeddings:
            raise ValueError("there are no images to evaluate on; check the path or the split")
        return torch.cat(embeddings)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, as the model gives them (not normalised).

        Shape:
            result: `(texts, dim)`, float32 on the CPU.

        Raises:
            ValueError: if there is no text.
        """
        with self.encoding() as encoders:
            return encoders.encode_texts(texts)

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
        text = self.embed_texts(fill_templates(class_names, templates))
        return ensemble_prompts(text.reshape(len(class_names), len(templates), -1))


def origin(model: ImageTextModel) -> dict[str, str]:
    """Return when, by which version and where the features that a model makes now are made."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"when": when, "version": VERSION, "device": machine_name(model)}

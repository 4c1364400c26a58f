"""What a model makes of a data set: images are decoded by threads while others are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import attrs
import torch
from PIL import Image
from torch import Tensor

from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark, BenchmarkSample
from mobileclip.evaluation.encoding.decoding import decode_ahead
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize
from mobileclip.evaluation.encoding.inference import KnownTexts, encoding
from mobileclip.evaluation.metrics.classification import fill_templates
from mobileclip.evaluation.suite import suite_entry
from mobileclip.progress import Progress
from mobileclip.terminal import console

Transform = Callable[[Image.Image], Tensor]


@attrs.frozen(kw_only=True, eq=False)
class Features:
    """The embeddings of a data set, as the model gives them, and what is needed to score them.

    Shape:
        image: `(images, dim)`; text: `(classes * templates, dim)`, the templates of the first class first, or
        `(captions, dim)`, those of the first image first; labels, num_captions: `(images,)`;
        metadata: `(images, fields)`, int64.

    Args:
        keys: what the samples are called, in order.
        image: embeddings, float32, not normalised.
        text: embeddings, float32, not normalised.
        labels: index of each image's class; None for retrieval.
        num_captions: how many captions each image has; None for classification.
        metadata: whole numbers that say which groups an image belongs to, see `metadata_fields`; None where the data
            set has no groups, or one of the images does not say.

    Raises:
        ValueError: if the shapes or types do not fit each other.
    """

    keys: tuple[str, ...]
    image: Tensor
    text: Tensor
    labels: Tensor | None = None
    num_captions: Tensor | None = None
    metadata: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        if self.image.ndim != 2 or self.text.ndim != 2 or self.image.shape[1] != self.text.shape[1]:
            raise ValueError(
                f"expected embeddings (images, dim) and (texts, dim), got {tuple(self.image.shape)} and "
                f"{tuple(self.text.shape)}"
            )
        if (self.image.dtype, self.text.dtype) != (torch.float32, torch.float32):
            raise ValueError(f"expected embeddings in float32, got {self.image.dtype} and {self.text.dtype}")
        numbers = {"keys": len(self.keys)}
        for name, value in (("labels", self.labels), ("num_captions", self.num_captions), ("metadata", self.metadata)):
            if value is not None:
                if value.dtype != torch.int64 or value.ndim != 1 + (name == "metadata"):
                    raise ValueError(f"expected {name} (images, ...), int64, got {value.dtype} {tuple(value.shape)}")
                numbers[name] = len(value)
        if wrong := {name: number for name, number in numbers.items() if number != len(self.image)}:
            raise ValueError(f"there are {len(self.image)} images, but {wrong}")
        if self.num_captions is not None and int(self.num_captions.sum()) != len(self.text):
            raise ValueError(f"there are {int(self.num_captions.sum())} captions, but {len(self.text)} embeddings")


def extract_features(
    model: ImageTextModel,
    benchmark: Benchmark,
    report: SkipReport,
    *,
    transform: Transform,
    tokenize: Tokenize,
    batch_size: int = 64,
    num_threads: int | None = None,
    show_progress: bool = True,
    class_texts: Tensor | None = None,
    known_texts: KnownTexts | None = None,
) -> Features:
    """Return the embeddings of a data set; what cannot be used is counted and named in `report`.

    Shape:
        class_texts: `(classes * templates, dim)`.

    Args:
        model: evaluated in evaluation mode, and left in the mode it came in; see `encoding`.
        benchmark: the data set.
        report: see `Benchmark.samples`; reasons for images that cannot be decoded start with `image_`.
        transform: from a picture, RGB and not turned by its EXIF orientation, to the model's input.
        tokenize: from texts to the model's ids.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, and, where the number of images is known, how long it takes: on
            disk and in the suite.
        class_texts: embeddings of every class in every template, where they were computed before.
        known_texts: embeddings that this model gave of texts with this `tokenize`: they are not encoded again, and
            those of new texts come to them. One dictionary for several data sets, which often ask the same.

    Raises:
        ValueError: if no image can be used; the message says why.
    """
    samples, embeddings = [], []
    with (
        encoding(model, known_texts) as encoders,
        Progress(
            benchmark.name,
            total=num_images(benchmark) or None,
            unit="images",
            console=console(shown=show_progress),
        ) as progress,
    ):
        decoded = _decoded(benchmark, transform, report, num_threads=num_threads, ahead=2 * batch_size)
        while batch := list(islice(decoded, batch_size)):
            pixels = torch.stack([pixels for _, pixels in batch])
            embeddings.append(encoders.encode_images(pixels))
            samples += [attrs.evolve(sample, image=b"") for sample, _ in batch]
            progress.advance(len(batch))
        if not samples:
            raise ValueError(f"no image of {benchmark.name} can be evaluated: {report}")
        retrieval = benchmark.kind == "retrieval"
        if retrieval:
            captions = [caption for sample in samples for caption in sample.captions]
            text = encoders.encode_texts(tokenize, captions, batch_size=batch_size, show_progress=show_progress)
        elif class_texts is None:
            prompts = fill_templates(benchmark.class_names, benchmark.templates)
            text = encoders.encode_texts(tokenize, prompts, batch_size=batch_size, show_progress=show_progress)
        else:
            text = class_texts
    return Features(
        keys=tuple(sample.key for sample in samples),
        image=torch.cat(embeddings),
        text=text,
        labels=None if retrieval else torch.tensor([sample.label for sample in samples]),
        num_captions=torch.tensor([len(sample.captions) for sample in samples]) if retrieval else None,
        metadata=_metadata(samples),
    )


def _metadata(samples: Sequence[BenchmarkSample]) -> Tensor | None:
    rows = [sample.metadata for sample in samples if sample.metadata is not None]
    return torch.tensor(rows) if len(rows) == len(samples) else None


def num_images(benchmark: Benchmark) -> int:
    """Return about how many images there are, or zero where finding out would mean reading them."""
    try:
        count = benchmark.num_samples()
    except ValueError:  # what is wrong with a shard is reported when it is read
        return 0
    if count is None:
        entry = suite_entry(benchmark.name)
        return 0 if entry is None else entry.num_images
    return count


def _decoded(
    benchmark: Benchmark, transform: Transform, report: SkipReport, *, num_threads: int | None, ahead: int
) -> Iterator[tuple[BenchmarkSample, Tensor]]:
    """Yield samples with their pixels, in order, decoded by threads; broken images are reported."""

    def decode(sample: BenchmarkSample) -> Tensor:
        return transform(decode_image(sample.image))

    for sample, outcome in decode_ahead(benchmark.samples(report), decode, ahead=ahead, num_threads=num_threads):
        if isinstance(outcome, BadSampleError):
            report.num_read -= 1
            report.add(Skip(reason=outcome.reason, key=sample.key, shard=benchmark.name, detail=outcome.detail))
        else:
            yield sample, outcome

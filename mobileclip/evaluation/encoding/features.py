"""What a model makes of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark, BenchmarkSample
from mobileclip.evaluation.encoding.inference import Encoders
from mobileclip.evaluation.suite import suite_entry


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
    encoders: Encoders,
    benchmark: Benchmark,
    report: SkipReport,
    *,
    class_texts: Tensor | None,
) -> Features:
    """Return the embeddings of a data set; what cannot be used is counted and named in `report`.

    Shape:
        class_texts: `(classes * templates, dim)`.

    Args:
        encoders: of the model.
        benchmark: the data set.
        report: see `Benchmark.samples`; reasons for images that cannot be decoded start with `image_`.
        class_texts: embeddings of every class in every template; None where there are captions.

    Raises:
        ValueError: if no image can be used; the message says why.
    """

    def skip(sample: BenchmarkSample, error: BadSampleError) -> None:
        report.num_read -= 1
        report.add(Skip(reason=error.reason, key=sample.key, shard=benchmark.name, detail=error.detail))

    samples, embeddings = encoders.embed_pictures(
        benchmark.samples(report),
        lambda sample: sample.image,
        keep=lambda sample: attrs.evolve(sample, image=b""),
        skip=skip,
        title=benchmark.name,
        total=num_images(benchmark) or None,
    )
    if not samples:
        raise ValueError(f"no image of {benchmark.name} can be evaluated: {report}")
    retrieval = class_texts is None
    if class_texts is None:
        class_texts = encoders.encode_texts([caption for sample in samples for caption in sample.captions])
    return Features(
        keys=tuple(sample.key for sample in samples),
        image=embeddings,
        text=class_texts,
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

"""The features that a model computes for a task: named tensors and their metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.suite import suite_entry


@attrs.frozen(kw_only=True, eq=False)
class Features:
    """A model's embeddings of a task's data, and what scoring needs beside them; a file holds them as they are.

    Zero-shot tasks and linear probes have the tensors of `Features.of`; other tasks have those that they name.

    Args:
        tensors: by name, on the CPU.
        header: values of JSON, such as `keys`, what the samples are called, in order.
        report: what was read, and what was left out, by reason.
        is_kept: whether they were read from such a file.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]
    report: SkipReport = attrs.field(factory=SkipReport)
    is_kept: bool = False

    @classmethod
    def of(
        cls,
        *,
        keys: Sequence[str],
        image: Tensor,
        text: Tensor | None = None,
        labels: Tensor | None = None,
        num_captions: Tensor | None = None,
        metadata: Tensor | None = None,
        report: SkipReport | None = None,
    ) -> Features:
        """Return the features of pictures with labels or captions.

        Shape:
            image: `(images, dim)`; text: `(classes * templates, dim)`, the templates of the first class first, or
            `(captions, dim)`, those of the first image first; labels, num_captions: `(images,)`;
            metadata: `(images, fields)`, int64.

        Args:
            keys: what the samples are called, in order.
            image: embeddings, float32, not normalised.
            text: embeddings, float32, not normalised; None where they are yet to come.
            labels: index of each image's class; None for retrieval.
            num_captions: how many captions each image has; None for classification.
            metadata: whole numbers that say which groups an image belongs to, see `metadata_fields`; None where the
                data set has no groups, or one of the images does not say.
            report: what was read, and what was left out; nothing, where it is not given.

        Raises:
            ValueError: if the shapes or types do not fit each other.
        """
        given = {"image": image, "text": text, "labels": labels, "num_captions": num_captions, "metadata": metadata}
        tensors = {name: value for name, value in given.items() if value is not None}
        _require_fitting(len(keys), tensors)
        return cls(tensors=tensors, header={"keys": list(keys)}, report=report or SkipReport(log=False))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the samples, in order."""
        return tuple(self.header["keys"])

    @property
    def image(self) -> Tensor:
        """Embeddings of the pictures."""
        return self.tensors["image"]

    @property
    def text(self) -> Tensor:
        """Embeddings of the texts."""
        return self.tensors["text"]

    @property
    def labels(self) -> Tensor | None:
        """Index of each image's class."""
        return self.tensors.get("labels")

    @property
    def num_captions(self) -> Tensor | None:
        """How many captions each image has."""
        return self.tensors.get("num_captions")

    @property
    def metadata(self) -> Tensor | None:
        """Whole numbers that say which groups an image belongs to."""
        return self.tensors.get("metadata")

    def with_tensors(self, **tensors: Tensor) -> Features:
        """Return them with these tensors, added or in place of those of the same names."""
        return attrs.evolve(self, tensors={**self.tensors, **tensors})


def _require_fitting(num_keys: int, tensors: Mapping[str, Tensor]) -> None:
    image, text = tensors["image"], tensors.get("text", tensors["image"])
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"expected embeddings (images, dim) and (texts, dim), got {tuple(image.shape)} and {tuple(text.shape)}"
        )
    if (image.dtype, text.dtype) != (torch.float32, torch.float32):
        raise ValueError(f"expected embeddings in float32, got {image.dtype} and {text.dtype}")
    numbers = {"keys": num_keys}
    for name in tensors.keys() & {"labels", "num_captions", "metadata"}:
        value = tensors[name]
        if value.dtype != torch.int64 or value.ndim != 1 + (name == "metadata"):
            raise ValueError(f"expected {name} (images, ...), int64, got {value.dtype} {tuple(value.shape)}")
        numbers[name] = len(value)
    if wrong := {name: number for name, number in numbers.items() if number != len(image)}:
        raise ValueError(f"there are {len(image)} images, but {wrong}")
    if "num_captions" in tensors and int(tensors["num_captions"].sum()) != len(text):
        raise ValueError(f"there are {int(tensors['num_captions'].sum())} captions, but {len(text)} embeddings")


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

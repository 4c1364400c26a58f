"""How well a model does a task: zero-shot accuracy where there are classes, retrieval where there are captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import attrs
import torch
from torch import Tensor

from mobileclip.data import BadSampleError, ImageTextSample, ImageTransform, SkipReport, Tokenizer, decode_image
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import (
    classification_accuracy,
    embed_classes,
    embed_labelled_images,
    embed_texts,
    retrieval_recall,
)

from .tasks import Task, label_of

_BATCH = 64


@attrs.frozen(kw_only=True)
class Score:
    """How well a model does one task.

    Args:
        task: its name.
        metric: `top-1`, zero-shot, or `R@1`, the mean of both directions of retrieval.
        value: in per cent.
        num_images: pictures that it was tested on.
    """

    task: str
    metric: str
    value: float
    num_images: int


def evaluate_task(
    model: DualEncoder, task: Task, templates: tuple[str, ...], class_names: tuple[str, ...] = ()
) -> Score:
    """Return how well `model` does `task`.

    Args:
        model: in any mode, which it keeps.
        task: what to test on; pictures that cannot be decoded are left out.
        templates: sentences that names of classes are put into.
        class_names: classes to choose from beside those of the pictures.

    Raises:
        ValueError: if there is not one picture.
    """
    stream = _Decoded(task, ImageTransform(model.spec.image.input))
    image, _ = embed_labelled_images(model, stream.batches())
    tokenizer = Tokenizer(model.spec.text.input)
    if task.kind == "classes":
        labels = [label_of(sample) for sample in stream.samples]
        names = sorted({*class_names, *labels})
        place = {name: index for index, name in enumerate(names)}
        classes = embed_classes(model, tokenizer, names, templates)
        targets = torch.tensor([place[label] for label in labels])
        accuracy = classification_accuracy(image, classes, targets, allow_absent=True)
        return Score(task=task.name, metric="top-1", value=100 * accuracy.top1, num_images=len(image))
    ids = torch.arange(len(image))
    counts = torch.tensor([len(sample.captions) for sample in stream.samples])
    text = embed_texts(model, tokenizer, [caption for sample in stream.samples for caption in sample.captions])
    recall = retrieval_recall(image, text, image_ids=ids, text_ids=ids.repeat_interleave(counts))
    mean = (recall.image_to_text.at1 + recall.text_to_image.at1) / 2
    return Score(task=task.name, metric="R@1", value=100 * mean, num_images=len(image))


class _Decoded:
    """Batches of a task's preprocessed pictures; `samples` are those that could be decoded, without their pictures."""

    def __init__(self, task: Task, transform: ImageTransform) -> None:
        self.task = task
        self.transform = transform
        self.samples: list[ImageTextSample] = []

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        source = self.task.samples(SkipReport())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while group := list(islice(source, _BATCH)):
                images = []
                for sample, image in zip(group, pool.map(self._decoded, group), strict=True):
                    if image is not None:
                        images.append(image)
                        self.samples.append(attrs.evolve(sample, image=None))
                if images:
                    yield torch.stack(images), torch.zeros(len(images), dtype=torch.long)

    def _decoded(self, sample: ImageTextSample) -> Tensor | None:
        try:
            return None if sample.image is None else self.transform(decode_image(sample.image))
        except BadSampleError:
            return None

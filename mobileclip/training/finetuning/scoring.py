"""How well a model does a task: zero-shot accuracy where there are classes, retrieval where there are captions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

import attrs
import torch
from torch import Tensor

from mobileclip.data import BadSampleError, ImageTextSample, ImageTransform, Skip, SkipReport, Tokenizer, decode_image
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import Session
from mobileclip.evaluation.encoding.decoding import decode_ahead
from mobileclip.evaluation.metrics.classification import classification_hits
from mobileclip.evaluation.metrics.retrieval import caption_hits
from mobileclip.training.finetuning.tasks import Task, label_of

_BATCH = 64


@attrs.frozen(kw_only=True)
class Score:
    """How well a model does one task.

    Args:
        task: its name.
        metric: `top-1`, zero-shot, or `R@1`, the mean of both directions of retrieval.
        value: in per cent.
        num_images: pictures that it was tested on.
        num_skipped: pictures, or parts of the data, that could not be used.
        hits: how right the model was, from 0 to 1, by picture; their mean is the value.
    """

    task: str
    metric: str
    value: float
    num_images: int
    num_skipped: int = 0
    hits: tuple[float, ...] = ()


def evaluate_task(
    model: DualEncoder, task: Task, templates: tuple[str, ...], class_names: tuple[str, ...] = ()
) -> Score:
    """Return how well `model` does `task`.

    Args:
        model: in any mode, which it keeps.
        task: what to test on; pictures that cannot be used are left out, logged and counted.
        templates: sentences that names of classes are put into.
        class_names: classes to choose from beside those of the pictures.

    Raises:
        ValueError: if there is not one picture.
    """
    report = SkipReport()
    transform, tokenizer = ImageTransform(model.spec.image.input), Tokenizer(model.spec.text.input)
    session = Session(model, transform=transform, tokenize=tokenizer, show_progress=False)
    stream = _Decoded(task, transform, report)
    image = session.embed_images(stream.batches())
    found = partial(Score, task=task.name, num_images=len(image), num_skipped=report.num_skipped)
    if task.kind == "classes":
        labels = [label_of(sample) for sample in stream.samples]
        names = sorted({*class_names, *labels})
        place = {name: index for index, name in enumerate(names)}
        classes = session.embed_classes(names, templates)
        targets = torch.tensor([place[label] for label in labels])
        hits = classification_hits(image, classes, targets).top1.tolist()
        return found(metric="top-1", value=100 * sum(hits) / len(hits), hits=tuple(hits))
    text = session.embed_texts([caption for sample in stream.samples for caption in sample.captions])
    hits = caption_hits(image, text, [len(sample.captions) for sample in stream.samples]).tolist()
    return found(metric="R@1", value=100 * sum(hits) / len(hits), hits=tuple(hits))


class _Decoded:
    """Batches of a task's preprocessed pictures; `samples` are those that could be decoded, without their pictures."""

    def __init__(self, task: Task, transform: ImageTransform, report: SkipReport) -> None:
        self.task = task
        self.transform = transform
        self.report = report
        self.samples: list[ImageTextSample] = []

    def batches(self) -> Iterator[Tensor]:
        pictures = self._pictures()
        while group := list(islice(pictures, _BATCH)):
            yield torch.stack(group)

    def _pictures(self) -> Iterator[Tensor]:
        for sample, outcome in decode_ahead(self.task.samples(self.report), self._decoded, ahead=2 * _BATCH):
            if isinstance(outcome, BadSampleError):
                skip = Skip(reason=outcome.reason, key=sample.key, shard=self.task.name, detail=outcome.detail)
                self.report.add(skip)
                continue
            self.samples.append(attrs.evolve(sample, image=None))
            yield outcome

    def _decoded(self, sample: ImageTextSample) -> Tensor:
        if sample.image is None:
            raise BadSampleError("no_image", "there is a text alone")
        return self.transform(decode_image(sample.image))

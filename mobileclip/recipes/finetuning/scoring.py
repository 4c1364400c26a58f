"""Scores a model on a task: zero-shot accuracy for classes, retrieval for captions."""

from __future__ import annotations

from functools import partial

import attrs
import torch

from mobileclip.data import BadSampleError, ImageTextSample, SkipReport
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import Session
from mobileclip.evaluation.metrics.classification import classification_hits
from mobileclip.evaluation.metrics.retrieval import caption_hits
from mobileclip.training.finetuning import Score, Task, label_of


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
    session = Session(model, show_progress=False)
    samples, image = session.embed_pictures(
        task.samples(report),
        _picture,
        keep=lambda sample: attrs.evolve(sample, image=None),
        report=report,
        title=task.name,
    )
    if not samples:
        raise ValueError("there are no images to evaluate on; check the path or the split")
    found = partial(Score, task=task.name, num_images=len(image), num_skipped=report.num_skipped)
    if task.kind == "classes":
        labels = [label_of(sample) for sample in samples]
        names = sorted({*class_names, *labels})
        place = {name: index for index, name in enumerate(names)}
        classes = session.embed_classes(names, templates)
        targets = torch.tensor([place[label] for label in labels])
        hits = classification_hits(image, classes, targets).top1.tolist()
        return found(metric="top-1", value=100 * sum(hits) / len(hits), hits=tuple(hits))
    text = session.encode_texts([caption for sample in samples for caption in sample.captions])
    hits = caption_hits(image, text, [len(sample.captions) for sample in samples]).tolist()
    return found(metric="R@1", value=100 * sum(hits) / len(hits), hits=tuple(hits))


def _picture(sample: ImageTextSample) -> bytes:
    if sample.image is None:
        raise BadSampleError("no_image", "there is a text alone")
    return sample.image

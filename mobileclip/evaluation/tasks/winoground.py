"""Winoground, and whatever has its form: two pictures and two captions of the same words, to be matched.

    winoground/
        examples.jsonl    {"id": 0, "caption_0": "...", "caption_1": "...", "image_0": "ex_0_img_0", "image_1": ...}
        images/           ex_0_img_0.png, ...; or images.zip as it is published

Source: Thrush et al. 2022 (arXiv 2204.03162); the files are those of `data/` of the data set `facebook/winoground` on
the Hugging Face hub, where its licence has to be agreed to before it can be fetched.
"""

from __future__ import annotations

from itertools import chain

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.metrics.outcomes import outcomes_of
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.annotations import Entry, folder_or_zip, read_lines
from mobileclip.evaluation.tasks.aro.texts import encode_distinct
from mobileclip.evaluation.tasks.folder_task import FolderTask
from mobileclip.evaluation.tasks.named_pictures import embed_named
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, TaskOptions


@attrs.frozen
class _Example:
    """Two pictures and the captions that belong to them, in the same order."""

    key: str
    pictures: tuple[str, str]
    captions: tuple[str, str]


@attrs.frozen(kw_only=True)
class WinogroundTask(FolderTask):
    """Pairs of pictures and captions.

    Args:
        key, name, path: see `FolderTask`.
        images: the folder of images, or the zip file.
        examples: what is asked.
    """

    images: str
    examples: tuple[_Example, ...] = attrs.field(repr=lambda examples: f"{len(examples)} examples")

    def evaluate(self, session: Session) -> Evaluation:
        """Return how often captions are found for both pictures, pictures for both captions, and both of it.

        Gives `text_score`, `image_score` and `group_score`, the one that counts; guessing gives 1/4, 1/4 and 1/6.

        Returns:
            The result and the report count examples; the report names pictures, image_missing and others that start
            with `image_`, and the examples that lack one, example_incomplete.

        Raises:
            ValueError: if no example can be used; the message says why.
            OSError: if the images cannot be read.
        """
        report = SkipReport()
        with session.encoding() as encoders:
            names = tuple(dict.fromkeys(chain.from_iterable(one.pictures for one in self.examples)))
            image = embed_named(encoders, self.images, names, report, title=self.name)
            whole = [one for one in self.examples if all(picture in image for picture in one.pictures)]
            if not whole:
                raise ValueError(f"no example of {self.name} can be evaluated: {report}")
            text, row_of = encode_distinct(encoders, list(chain.from_iterable(one.captions for one in whole)))
        report.num_read = len(whole)
        lost = [one for one in self.examples if one not in whole]
        report.extend(
            Skip(reason="example_incomplete", key=one.key, shard=self.images, detail="it lacks a picture")
            for one in lost
        )
        pictures = torch.stack([torch.stack([image[name] for name in one.pictures]) for one in whole])
        captions = torch.stack([text[[row_of[caption] for caption in one.captions]] for one in whole])
        by_text, by_image = matches(pictures, captions)
        both = (by_text & by_image).double()
        scores = {
            "text_score": float(by_text.double().mean()),
            "image_score": float(by_image.double().mean()),
            "group_score": float(both.mean()),
        }
        return Evaluation(
            result=DatasetResult(
                key=self.key,
                dataset=self.name,
                metrics={**scores, MAIN_METRIC: scores["group_score"]},
                num_images=len(whole),
                num_skipped=len(lost),
            ),
            report=report,
            outcomes=outcomes_of([one.key for one in whole], both.numpy()),
        )


def matches(pictures: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Return, by example, whether each picture's own caption is the nearer, and whether each caption's own picture is.

    Equal scores are wrong: a model that cannot tell two captions apart has not matched them.

    Shape:
        pictures, captions: `(examples, 2, dim)`; results: `(examples,)`.

    Args:
        pictures: embeddings, normalised here.
        captions: embeddings, normalised here, in the order of the pictures that they belong to.

    Source: Thrush et al. 2022, section 4.1.
    """
    scores = F.normalize(pictures.float(), dim=-1) @ F.normalize(captions.float(), dim=-1).transpose(1, 2)
    own = scores.diagonal(dim1=1, dim2=2)
    others = scores.flip(2).diagonal(dim1=1, dim2=2)
    return (own > others).all(dim=1), (own > others.flip(1)).all(dim=1)


def open_winoground(found: FoundTask, _: TaskOptions) -> WinogroundTask:
    """Return the task, having read its captions; images are read when they are needed.

    Raises:
        ValueError: if the captions or the images are missing or malformed; the message says which line.
        OSError: if a store cannot be reached.
    """
    lines = read_lines(storage.join(found.path, "examples.jsonl"), found.name)
    examples = tuple(_example(entry) for entry in lines)
    if not examples:
        raise ValueError(f"{found.path}/examples.jsonl has no lines")
    images = folder_or_zip(storage.join(found.path, "images"), found.name)
    return WinogroundTask(key=found.key, name=found.name, path=found.path, images=images, examples=examples)


def _example(entry: Entry) -> _Example:
    return _Example(
        str(entry.index),
        (entry.file_name("image_0"), entry.file_name("image_1")),
        (entry.text("caption_0"), entry.text("caption_1")),
    )

"""SugarCrepe: which of two captions is true of a picture, where the false one is as fluent as the true one.

    sugarcrepe/
        add_att.json, ...      {"0": {"filename": "000000085329.jpg", "caption": "...", "negative_caption": "..."}, ...}
        val2017/               COCO's images, or val2017.zip as it is published

Source: Hsieh et al. 2023 (arXiv 2306.14610), and the code that it is published with.
"""

from __future__ import annotations

from itertools import chain

import attrs
import torch

from mobileclip import storage
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.metrics.outcomes import clustered_outcomes
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.annotations import folder_or_zip, read_object
from mobileclip.evaluation.tasks.aro.scoring import beats, caption_scores
from mobileclip.evaluation.tasks.aro.texts import encode_distinct
from mobileclip.evaluation.tasks.folder_task import FolderTask
from mobileclip.evaluation.tasks.named_pictures import embed_named
from mobileclip.evaluation.tasks.task import Evaluation, FoundTask, TaskOptions

PREFIX = "comp/sugarcrepe_"
PARTS = {
    "replace_obj": "SugarCrepe Replace Object",
    "replace_att": "SugarCrepe Replace Attribute",
    "replace_rel": "SugarCrepe Replace Relation",
    "swap_obj": "SugarCrepe Swap Object",
    "swap_att": "SugarCrepe Swap Attribute",
    "add_obj": "SugarCrepe Add Object",
    "add_att": "SugarCrepe Add Attribute",
}
"""Names in tables, by what the false caption changes."""


@attrs.frozen
class _Case:
    """A caption that is true of a picture, and one that is not."""

    key: str
    picture: str
    true_caption: str
    false_caption: str


@attrs.frozen(kw_only=True)
class SugarCrepeTask(FolderTask):
    """A part of SugarCrepe.

    Args:
        key, name, path: see `FolderTask`.
        images: the folder of images, or the zip file.
        cases: what is asked.
    """

    images: str
    cases: tuple[_Case, ...] = attrs.field(repr=lambda cases: f"{len(cases)} cases")

    def evaluate(self, session: Session) -> Evaluation:
        """Return how often the true caption is more like the picture than the false one: `accuracy`.

        Two captions that are one text to the model are wrong; other equal scores are half right.

        Returns:
            The result and the report count cases; the report names pictures, image_missing and others that start with
            `image_`, and the cases that lack theirs, case_incomplete.

        Raises:
            ValueError: if no case can be used; the message says why.
            OSError: if the images cannot be read.

        Differs: the public code calls equal scores wrong, which no score but of a collapsed model is.
        """
        report = SkipReport()
        with session.encoding() as encoders:
            names = tuple(dict.fromkeys(case.picture for case in self.cases))
            image = embed_named(encoders, self.images, names, report, title=self.name)
            cases = [case for case in self.cases if case.picture in image]
            if not cases:
                raise ValueError(f"no image of {self.name} can be evaluated: {report}")
            captions = [(case.true_caption, case.false_caption) for case in cases]
            text, row_of = encode_distinct(encoders, list(chain.from_iterable(captions)))
        report.num_read = len(cases)
        lost = [case for case in self.cases if case.picture not in image]
        report.extend(
            Skip(reason="case_incomplete", key=case.key, shard=self.images, detail=f"it lacks {case.picture}")
            for case in lost
        )
        place = {name: index for index, name in enumerate(image)}
        compared = caption_scores(
            torch.stack(list(image.values())),
            text,
            images=torch.tensor([place[case.picture] for case in cases]),
            texts=torch.tensor([[row_of[caption] for caption in pair] for pair in captions]),
        )
        right = beats(compared)[:, 0].cpu()
        accuracy = float(right.mean())
        return Evaluation(
            result=DatasetResult(
                key=self.key,
                dataset=self.name,
                metrics={"accuracy": accuracy, MAIN_METRIC: accuracy},
                num_images=len(cases),
                num_skipped=len(lost),
            ),
            report=report,
            outcomes=clustered_outcomes([case.picture for case in cases], right.numpy()),
        )


def open_sugarcrepe(found: FoundTask, _: TaskOptions) -> SugarCrepeTask:
    """Return a part of SugarCrepe, having read its captions; images are read when they are needed.

    Raises:
        ValueError: if the captions or the images are missing or malformed; the message says which entry.
        OSError: if a store cannot be reached.
    """
    part = found.key.removeprefix(PREFIX)
    cases = tuple(
        _Case(str(entry.index), entry.file_name("filename"), entry.text("caption"), entry.text("negative_caption"))
        for entry in read_object(storage.join(found.path, f"{part}.json"), found.name)
    )
    images = folder_or_zip(storage.join(found.path, "val2017"), found.name)
    return SugarCrepeTask(key=found.key, name=found.name, path=found.path, images=images, cases=cases)

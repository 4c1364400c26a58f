"""A model on a part of ARO."""

from __future__ import annotations

from itertools import chain

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.encoding.embedding import model_input, read_picture
from mobileclip.evaluation.encoding.inference import Encoders
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.aro.scoring import (
    caption_scores,
    order_metrics,
    order_outcomes,
    pair_metrics,
    pair_outcomes,
)
from mobileclip.evaluation.tasks.aro.tasks import Aro, Box, Case, PairTask, Picture
from mobileclip.evaluation.tasks.aro.texts import encode_distinct
from mobileclip.evaluation.tasks.task import Evaluation


@attrs.frozen(kw_only=True, eq=False)
class _View:
    """The embedding of a picture or of a part of one, with the cases about it."""

    embedding: Tensor
    cases: tuple[Case, ...]
    picture: str


def evaluate_aro(session: Session, aro: Aro) -> Evaluation:
    """Evaluate a model on a part of ARO; every part of a picture is encoded once, and so is every text.

    VG-Relation and VG-Attribution give `macro_accuracy`, the one that counts, `accuracy/GROUP` of every relation or
    pair of attributes, and `accuracy` over all cases; see `pair_metrics`. Orders give `precision@1`, the one that
    counts, `chance`, what guessing gives, and `accuracy/PERTURBATION` against every other order alone; see
    `order_metrics`.

    Args:
        session: of the model.
        aro: see `open_aro` and `order_task`.

    Returns:
        The report counts cases: reasons are image_missing, box_outside, those of pictures that cannot be decoded, which
        start with `image_`, and those of `OrderTask.pictures`.

    Raises:
        ValueError: if no image can be used; the message says why. If a group that counts has no case left.
        OSError: if a store cannot be reached.
    """
    report = SkipReport()
    with session.encoding() as encoders:
        views = _views(session, encoders, aro, report)
        if not views:
            raise ValueError(f"no image of {aro.title} can be evaluated: {report}")
        cases = [case for view in views for case in view.cases]
        captions = [(case.true_caption, *case.false_captions) for case in cases]
        text, row_of = encode_distinct(encoders, list(chain.from_iterable(captions)))
    counts = torch.tensor([len(view.cases) for view in views])
    compared = caption_scores(
        torch.stack([view.embedding for view in views]),
        text,
        images=torch.arange(len(views)).repeat_interleave(counts),
        texts=torch.tensor([[row_of[caption] for caption in group] for group in captions]),
    )
    pictures = [view.picture for view in views for _ in view.cases]
    if isinstance(aro, PairTask):
        groups = [case.group for case in cases]
        metrics = pair_metrics(compared, groups, aro.counted)
        outcomes = pair_outcomes(compared, groups, aro.counted, pictures)
    else:
        metrics, outcomes = order_metrics(compared), order_outcomes(compared, pictures)
    result = DatasetResult(
        key=aro.key, dataset=aro.dataset, metrics=metrics, num_images=len(cases), num_skipped=report.num_skipped
    )
    return Evaluation(result=result, report=report, outcomes=outcomes)


def _views(session: Session, encoders: Encoders, aro: Aro, report: SkipReport) -> list[_View]:
    """Return what was encoded, in order; cases without are taken out of the report's count and named there."""

    def parts(picture: Picture) -> list[Tensor | None]:
        image = read_picture(picture.read(), session.transform, orient=picture.boxes == (None,))
        return [
            model_input(image if box is None else image.crop(box), session.transform)
            if box is None or _overlaps(box, image.size)
            else None
            for box in picture.boxes
        ]

    encoded = encoders.encode_pictures(
        aro.pictures(report),
        parts,
        title=aro.title,
        total=aro.num_pictures or None,
        weigh=lambda picture: len(picture.boxes),
    )
    views = []
    for picture, found in encoded:
        if isinstance(found, BadSampleError):
            _leave_out(report, aro, picture.cases, found)
            continue
        for box, embedding in zip(picture.boxes, found, strict=True):
            cases = tuple(case for case in picture.cases if case.box == box)
            if embedding is None:
                error = BadSampleError("box_outside", f"{box} lies outside of {picture.key}")
                _leave_out(report, aro, cases, error)
            else:
                views.append(_View(embedding=embedding, cases=cases, picture=picture.key))
    return views


def _overlaps(box: Box, size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return left < size[0] and top < size[1] and right > 0 and bottom > 0


def _leave_out(report: SkipReport, aro: Aro, cases: tuple[Case, ...], error: BadSampleError) -> None:
    report.num_read -= len(cases)
    report.extend(Skip(reason=error.reason, key=case.key, shard=aro.key, detail=error.detail) for case in cases)

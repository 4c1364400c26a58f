"""A model on a part of ARO."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import attrs
import torch
from torch import Tensor

from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.encoding.decoding import decode_ahead
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize
from mobileclip.evaluation.encoding.features import Transform
from mobileclip.evaluation.encoding.inference import Encoders, KnownTexts, encoding
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.tasks.aro.scoring import (
    caption_scores,
    order_metrics,
    order_outcomes,
    pair_metrics,
    pair_outcomes,
)
from mobileclip.evaluation.tasks.aro.tasks import Aro, Box, Case, PairTask, Picture
from mobileclip.evaluation.tasks.aro.texts import encode_distinct
from mobileclip.evaluation.tasks.zero_shot.evaluate import Evaluation
from mobileclip.progress import Progress
from mobileclip.terminal import console


@attrs.frozen(kw_only=True, eq=False)
class _View:
    """A picture or a part of one, as the model sees it, with the cases about it."""

    pixels: Tensor
    cases: tuple[Case, ...]
    picture: str


def evaluate_aro(
    model: ImageTextModel,
    aro: Aro,
    *,
    transform: Transform,
    tokenize: Tokenize,
    batch_size: int = 64,
    num_threads: int | None = None,
    show_progress: bool = True,
    known_texts: KnownTexts | None = None,
) -> Evaluation:
    """Evaluate a model on a part of ARO; every part of a picture is encoded once, and so is every text.

    VG-Relation and VG-Attribution give `macro_accuracy`, the one that counts, `accuracy/GROUP` of every relation or
    pair of attributes, and `accuracy` over all cases; see `pair_metrics`. Orders give `precision@1`, the one that
    counts, `chance`, what guessing gives, and `accuracy/PERTURBATION` against every other order alone; see
    `order_metrics`.

    Args:
        model: evaluated in evaluation mode, and left in the mode it came in.
        aro: see `open_aro` and `order_task`.
        transform: from a picture, RGB and not turned by its EXIF orientation, to the model's input.
        tokenize: from texts to the model's ids.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, and how long it takes where the number of images is known.
        known_texts: embeddings that this model gave of texts with this `tokenize`; see `extract_features`.

    Returns:
        The report counts cases: reasons are image_missing, box_outside, those of pictures that cannot be decoded, which
        start with `image_`, and those of `OrderTask.pictures`.

    Raises:
        ValueError: if no image can be used; the message says why. If a group that counts has no case left.
        OSError: if a store cannot be reached.
    """
    report = SkipReport()
    with encoding(model, known_texts) as encoders:
        views = _views(aro, report, transform, ahead=2 * batch_size, num_threads=num_threads, shown=show_progress)
        image, cases, images, pictures = _encode(encoders, views, batch_size=batch_size)
        if not cases:
            raise ValueError(f"no image of {aro.title} can be evaluated: {report}")
        captions = [(case.true_caption, *case.false_captions) for case in cases]
        text, row_of = encode_distinct(
            encoders,
            tokenize,
            [caption for group in captions for caption in group],
            batch_size=batch_size,
            show_progress=show_progress,
        )
    compared = caption_scores(
        image, text, images=images, texts=torch.tensor([[row_of[caption] for caption in group] for group in captions])
    )
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


def _encode(
    encoders: Encoders, views: Iterator[_View], *, batch_size: int
) -> tuple[Tensor, list[Case], Tensor, list[str]]:
    """Return the embeddings of the views, the cases about them, and every case's view, an index, and picture, a key."""
    embeddings: list[Tensor] = []
    cases: list[Case] = []
    counts: list[int] = []
    pictures: list[str] = []
    while batch := list(islice(views, batch_size)):
        embeddings.append(encoders.encode_images(torch.stack([view.pixels for view in batch])))
        for view in batch:
            cases += view.cases
            counts.append(len(view.cases))
            pictures += [view.picture] * len(view.cases)
    image = torch.cat(embeddings) if embeddings else torch.empty(0, 0)
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
    return image, cases, images, pictures


def _views(
    aro: Aro, report: SkipReport, transform: Transform, *, ahead: int, num_threads: int | None, shown: bool
) -> Iterator[_View]:
    """Yield what is to be encoded, in order; cases without are taken out of the report's count and named there."""

    def decode(picture: Picture) -> dict[Box | None, Tensor]:
        image = decode_image(picture.read())
        boxes = [box for box in picture.boxes if box is None or _overlaps(box, image.size)]
        return {box: transform(image if box is None else image.crop(box)) for box in boxes}

    decoded = decode_ahead(
        aro.pictures(report), decode, ahead=ahead, weigh=lambda picture: len(picture.boxes), num_threads=num_threads
    )
    total = aro.num_pictures or None
    with Progress(aro.title, total=total, unit="images", console=console(shown=shown)) as progress:
        for picture, outcome in decoded:
            progress.advance()
            if isinstance(outcome, BadSampleError):
                _leave_out(report, aro, picture.cases, outcome)
                continue
            for box in picture.boxes:
                cases = tuple(case for case in picture.cases if case.box == box)
                if box in outcome:
                    yield _View(pixels=outcome[box], cases=cases, picture=picture.key)
                else:
                    error = BadSampleError("box_outside", f"{box} lies outside of {picture.key}")
                    _leave_out(report, aro, cases, error)


def _overlaps(box: Box, size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return left < size[0] and top < size[1] and right > 0 and bottom > 0


def _leave_out(report: SkipReport, aro: Aro, cases: tuple[Case, ...], error: BadSampleError) -> None:
    report.num_read -= len(cases)
    report.extend(Skip(reason=error.reason, key=case.key, shard=aro.key, detail=error.detail) for case in cases)

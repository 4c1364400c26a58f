"""The published metrics of ARO, from how alike pictures and captions are."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.evaluation.metrics.outcomes import Outcomes, class_weights, clustered_outcomes
from mobileclip.evaluation.metrics.ranking import require_embeddings
from mobileclip.evaluation.results import MAIN_METRIC
from mobileclip.evaluation.tasks.aro.perturbation import PERTURBATIONS


@attrs.frozen(kw_only=True, eq=False)
class CaptionScores:
    """How alike pictures and captions are.

    Shape:
        scores, texts: `(cases, captions)`, the true caption first.

    Args:
        scores: cosine similarities.
        texts: which text a caption is to the model; captions that it cannot tell apart are the same.
    """

    scores: Tensor
    texts: Tensor


def caption_scores(
    image: Tensor, text: Tensor, *, images: Tensor, texts: Tensor, chunk_size: int = 4096
) -> CaptionScores:
    """Compare every case's picture with its captions.

    Shape:
        image: `(views, dim)`; text: `(texts, dim)`; images: `(cases,)`; texts: `(cases, captions)`.

    Args:
        image: embeddings, normalised here.
        text: embeddings, normalised here.
        images: index of every case's picture.
        texts: indices of every case's captions, the true one first.
        chunk_size: cases compared at once.

    Raises:
        ValueError: if there is nothing to compare, or an embedding is not finite.
    """
    require_embeddings("image", image)
    require_embeddings("text", text, dim=image.shape[1])
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    scores = [
        (image[images[start : start + chunk_size], None] * text[texts[start : start + chunk_size]]).sum(dim=-1)
        for start in range(0, len(images), chunk_size)
    ]
    return CaptionScores(scores=torch.cat(scores), texts=texts)


def pair_metrics(compared: CaptionScores, groups: Sequence[str], counted: Sequence[str]) -> dict[str, float]:
    """Return the macro accuracy, that of every group that counts, and that over all cases.

    A case is right where the true caption scores higher. Two captions that are one text to the model are wrong, as they
    are where the benchmark is published: the swap made the same sentence. Other equal scores are half right.

    Args:
        compared: with two captions a case.
        groups: what every case tests.
        counted: the groups whose mean is the metric.

    Raises:
        ValueError: if a group that counts has no case: the mean of fewer is another number.
    """
    right = beats(compared)[:, 0]
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    absent = [group for group in counted if group not in members]
    if absent:
        raise ValueError(
            f"the macro accuracy is over {len(counted)} groups, and no picture of {len(absent)} of them can be used: "
            f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
        )
    by_group = {group: float(right[members[group]].mean()) for group in counted}
    macro = sum(by_group.values()) / len(by_group)
    return {
        MAIN_METRIC: macro,
        "macro_accuracy": macro,
        "accuracy": float(right.mean()),
        **{f"accuracy/{group}": accuracy for group, accuracy in by_group.items()},
    }


def pair_outcomes(
    compared: CaptionScores, groups: Sequence[str], counted: Sequence[str], pictures: Sequence[str]
) -> Outcomes:
    """Return what `pair_metrics`'s macro accuracy is made of, by picture: every group that counts has the same weight.

    Args:
        compared: with two captions a case.
        groups: what every case tests.
        counted: the groups whose mean is the metric, each with a case.
        pictures: key of the picture that every case is about.
    """
    kept = [number for number, group in enumerate(groups) if group in counted]
    right = beats(compared)[kept, 0].cpu().numpy()
    return clustered_outcomes([pictures[one] for one in kept], right, class_weights([groups[one] for one in kept]))


def order_outcomes(compared: CaptionScores, pictures: Sequence[str]) -> Outcomes:
    """Return what `order_metrics`'s precision is made of, by picture: every caption has the same weight.

    Args:
        compared: the true caption and those of `PERTURBATIONS`.
        pictures: key of the picture that every case is about.
    """
    return clustered_outcomes(pictures, _best(compared, _competing(compared)).cpu().numpy())


def order_metrics(compared: CaptionScores) -> dict[str, float]:
    """Return how often the true caption is the best, what guessing gives, and how often it beats each other order.

    An order that is the true caption's text to the model again is no competitor, as it is none where the benchmark is
    published; `chance` so is above one in five. Among other equal scores one is the best at random.

    Args:
        compared: the true caption and those of `PERTURBATIONS`.
    """
    competes, against = _competing(compared), beats(compared)
    against[compared.texts[:, 1:] == compared.texts[:, :1]] = 1.0
    precision = float(_best(compared, competes).mean())
    return {
        MAIN_METRIC: precision,
        "precision@1": precision,
        "chance": float((1.0 / (1 + competes.sum(dim=1).double())).mean()),
        **{f"accuracy/{name}": float(against[:, index].mean()) for index, name in enumerate(PERTURBATIONS)},
    }


def _competing(compared: CaptionScores) -> Tensor:
    """Return which captions are texts that no caption before them is to the model, the true one left out."""
    texts = compared.texts
    competes = torch.zeros_like(texts, dtype=torch.bool)
    for column in range(1, texts.shape[1]):
        competes[:, column] = (texts[:, column, None] != texts[:, :column]).all(dim=1)
    return competes


def _best(compared: CaptionScores, competes: Tensor) -> Tensor:
    """Return how likely the true caption is the best one, by case."""
    scores = compared.scores
    better = competes & (scores > scores[:, :1])
    tied = competes & (scores == scores[:, :1])
    return torch.where(better.any(dim=1), 0.0, 1.0 / (1 + tied.sum(dim=1).double()))


def beats(compared: CaptionScores) -> Tensor:
    """Return, for every false caption, whether the true one scores higher: 1, a half where they tie, or 0.

    Shape:
        result: `(cases, captions - 1)`.
    """
    scores, texts = compared.scores, compared.texts
    true, false = scores[:, :1], scores[:, 1:]
    beats = (true > false).double() + 0.5 * (true == false).double()
    return beats.masked_fill(texts[:, :1] == texts[:, 1:], 0.0)

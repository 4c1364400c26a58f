"""The published metrics of choices, from the features of `ChoiceTask`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.evaluation.encoding import Features
from mobileclip.evaluation.metrics.groups import association_score
from mobileclip.evaluation.metrics.outcomes import Outcomes, class_weights, clustered_outcomes, outcomes_of
from mobileclip.evaluation.metrics.ranking import require_embeddings
from mobileclip.evaluation.metrics.retrieval import rank_captions
from mobileclip.evaluation.results import MAIN_METRIC
from mobileclip.evaluation.tasks.scoring import recall_metrics

PERTURBATIONS = ("nouns_and_adjectives", "all_but_nouns_and_adjectives", "within_trigrams", "trigrams")
"""What ARO shuffles: nouns among themselves and adjectives among themselves; all other words, marks too; the words
within every three; the threes."""

_CHUNK = 4096
_MANY = "10-12"
# By the number of candidates, as they are published.
_CANDIDATES = {"5": {5}, "6": {6}, "10": {10}, "12": {12}, "5-6": range(7), _MANY: range(10, sys.maxsize)}


def score_pairs(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return how often the true caption is more like the picture than the false one: `accuracy`.

    Two captions that are one text to the model are wrong, as the swap made the same sentence; other equal scores are
    half right. Questions about one picture count as one.
    """
    right = _beats(*_compared(features))[:, 0]
    accuracy = float(right.mean())
    return {"accuracy": accuracy, MAIN_METRIC: accuracy}, clustered_outcomes(features.header["pictures"], right.numpy())


def score_groups(features: Features, counted: Sequence[str]) -> tuple[dict[str, float], Outcomes]:
    """Return `macro_accuracy`, the one that counts, `accuracy/GROUP` of every group that counts, and `accuracy`.

    Args:
        features: of cases with two captions; see `score_pairs` for which are right.
        counted: the groups whose mean is the metric.

    Raises:
        ValueError: if a group that counts has no case: the mean of fewer is another number.
    """
    right, groups = _beats(*_compared(features))[:, 0], features.header["groups"]
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
    metrics = {MAIN_METRIC: macro, "macro_accuracy": macro, "accuracy": float(right.mean())}
    kept = [index for index, group in enumerate(groups) if group in by_group]
    pictures = [features.header["pictures"][index] for index in kept]
    outcomes = clustered_outcomes(pictures, right[kept].numpy(), class_weights([groups[index] for index in kept]))
    return metrics | {f"accuracy/{group}": accuracy for group, accuracy in by_group.items()}, outcomes


def score_orders(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return how often the true caption is the best, what guessing gives, and how often it beats each other order.

    `precision@1` counts, `chance` is what guessing gives, and `accuracy/PERTURBATION` is against one order alone. An
    order that is the true caption's text to the model again is no competitor, as it is none where the benchmark is
    published; `chance` so is above one in five. Among other equal scores one is the best at random.
    """
    scores, texts = _compared(features)
    competes = torch.zeros_like(texts, dtype=torch.bool)
    for column in range(1, texts.shape[1]):
        competes[:, column] = (texts[:, column, None] != texts[:, :column]).all(dim=1)
    better = competes & (scores > scores[:, :1])
    tied = competes & (scores == scores[:, :1])
    best = torch.where(better.any(dim=1), 0.0, 1.0 / (1 + tied.sum(dim=1).double()))
    against = _beats(scores, texts).masked_fill(texts[:, 1:] == texts[:, :1], 1.0)
    precision = float(best.mean())
    metrics = {
        MAIN_METRIC: precision,
        "precision@1": precision,
        "chance": float((1.0 / (1 + competes.sum(dim=1).double())).mean()),
        **{f"accuracy/{name}": float(against[:, index].mean()) for index, name in enumerate(PERTURBATIONS)},
    }
    return metrics, clustered_outcomes(features.header["pictures"], best.numpy())


def score_matches(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return how often captions are found for both pictures, pictures for both captions, and both of it.

    Gives `text_score`, `image_score` and `group_score`, the one that counts; guessing gives 1/4, 1/4 and 1/6.
    """
    by_text, by_image = matches(*_rows(features))
    both = (by_text & by_image).double()
    found = {"text_score": by_text.double(), "image_score": by_image.double(), "group_score": both, MAIN_METRIC: both}
    metrics = {name: float(values.mean()) for name, values in found.items()}
    return metrics, outcomes_of(features.header["keys"], both.numpy())


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


def score_associations(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return how well the pictures that people chose for a cue are found among the candidates.

    Gives `avg_jaccard_score`, the mean of `association_score` over all cases, and by their number of candidates
    `jaccard_score_N` for N of 5, 6, 10, 12, 5-6 and 10-12, with `count_N`, the number of cases; where there are none,
    both are left out. That of 10-12, cases with ten candidates or more, is the one that counts.

    Raises:
        ValueError: if there is no case with ten candidates or more.

    Source: the public evaluation of DataComp (Gadre et al. 2023).
    """
    image, text = _embeddings(features)
    keys, views, texts, right = (features.header[name] for name in ("keys", "views", "texts", "right"))
    scores = []
    for candidates, (cue,), chosen in zip(views, texts, right, strict=True):
        associated = torch.zeros(len(candidates), dtype=torch.bool).index_fill_(0, torch.tensor(chosen), value=True)
        scores.append(association_score(image[candidates] @ text[cue], associated))
    metrics = {"avg_jaccard_score": fmean(scores)}
    for name, sizes in _CANDIDATES.items():
        own = [score for score, candidates in zip(scores, views, strict=True) if len(candidates) in sizes]
        if own:
            metrics |= {f"jaccard_score_{name}": fmean(own), f"count_{name}": len(own)}
    many = [index for index, candidates in enumerate(views) if len(candidates) in _CANDIDATES[_MANY]]
    if not many:
        raise ValueError(f"no case with ten candidates or more can be evaluated: {features.report}")
    metrics[MAIN_METRIC] = metrics[f"jaccard_score_{_MANY}"]
    return metrics, outcomes_of([keys[index] for index in many], [scores[index] for index in many])


def score_retrieval(features: Features) -> tuple[dict[str, float], Outcomes]:
    """Return the metrics of retrieval of pictures and their one caption each; `mean_recall@1` counts."""
    keys = features.header["keys"]
    image, text = (rows[:, 0] for rows in _rows(features))
    ranking = rank_captions(image, text, [1] * len(keys))
    metrics = recall_metrics(ranking.recall)
    return metrics | {MAIN_METRIC: metrics["mean_recall@1"]}, outcomes_of(keys, ranking.caption_hits.numpy())


def _rows(features: Features) -> tuple[Tensor, Tensor]:
    """Return the embeddings of every case's pictures and texts, where all cases have as many.

    Shape:
        results: `(cases, pictures, dim)` and `(cases, texts, dim)`.
    """
    image, text = features.tensors["image"], features.tensors["text"]
    return image[torch.tensor(features.header["views"])], text[torch.tensor(features.header["texts"])]


def _embeddings(features: Features) -> tuple[Tensor, Tensor]:
    """Return the embeddings of pictures and texts, at unit length."""
    image, text = features.tensors["image"], features.tensors["text"]
    require_embeddings("image", image)
    require_embeddings("text", text, dim=image.shape[1])
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def _compared(features: Features) -> tuple[Tensor, Tensor]:
    """Return how alike every case's picture is to its texts, and which texts these are to the model.

    Shape:
        results: `(cases, texts)`, the true text first.
    """
    image, text = _embeddings(features)
    views, texts = torch.tensor(features.header["views"])[:, 0], torch.tensor(features.header["texts"])
    scores = [
        (image[views[start : start + _CHUNK], None] * text[texts[start : start + _CHUNK]]).sum(dim=-1)
        for start in range(0, len(views), _CHUNK)
    ]
    return torch.cat(scores), texts


def _beats(scores: Tensor, texts: Tensor) -> Tensor:
    """Return, for every false text, whether the true one scores higher: 1, a half where they tie, or 0.

    Shape:
        result: `(cases, texts - 1)`.
    """
    true, false = scores[:, :1], scores[:, 1:]
    beats = (true > false).double() + 0.5 * (true == false).double()
    return beats.masked_fill(texts[:, :1] == texts[:, 1:], 0.0)

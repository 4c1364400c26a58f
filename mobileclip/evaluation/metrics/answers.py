"""A model's answer for every image and whether it is correct; used to compare two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mobileclip.evaluation.metrics.retrieval import Ranking


@attrs.frozen(kw_only=True, eq=False)
class Answers:
    """One answer to every picture of a data set.

    Shape:
        answers, right, num_captions: `(images,)`.

    Args:
        keys: of the pictures, in order.
        answers: index of the class that each is taken for; of retrieval, number of the caption that is the nearest,
            those of the first picture first.
        right: whether it is the picture's class, or one of its captions.
        num_captions: how many captions each picture has; None where there are classes.
    """

    keys: tuple[str, ...]
    answers: NDArray[np.int64]
    right: NDArray[np.bool_]
    num_captions: NDArray[np.int64] | None = None


def class_answers(keys: Sequence[str], predicted: Tensor, labels: Tensor) -> Answers:
    """Return the answers of a classifier.

    Shape:
        predicted, labels: `(images,)`.
    """
    return Answers(keys=tuple(keys), answers=predicted.cpu().numpy(), right=(predicted.cpu() == labels.cpu()).numpy())


def caption_answers(keys: Sequence[str], ranking: Ranking, counts: Tensor) -> Answers:
    """Return the caption that is nearest to every picture.

    Shape:
        counts: `(images,)`.

    Args:
        keys: of the pictures, in order.
        ranking: of the captions, those of the first picture first.
        counts: how many captions each picture has.
    """
    right = ranking.text_ids[ranking.nearest] == torch.arange(len(ranking.nearest))
    return Answers(
        keys=tuple(keys), answers=ranking.nearest.numpy(), right=right.numpy(), num_captions=counts.cpu().numpy()
    )

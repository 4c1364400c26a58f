"""What a model answered to every picture, and whether it was right: what two models disagree on is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 2048


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


def caption_answers(keys: Sequence[str], image: Tensor, text: Tensor, counts: Tensor) -> Answers:
    """Return the caption that is nearest to every picture.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`, those of the first picture first; counts: `(images,)`.
    """
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    found = torch.cat([(part @ text.T).argmax(dim=1) for part in torch.split(image, _CHUNK)]).cpu()
    owner = torch.arange(len(counts)).repeat_interleave(counts.cpu())
    right = owner[found] == torch.arange(len(found))
    return Answers(keys=tuple(keys), answers=found.numpy(), right=right.numpy(), num_captions=counts.cpu().numpy())

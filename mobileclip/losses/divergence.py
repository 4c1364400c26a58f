"""How far the targets of distillation move where the teachers' embeddings are stored rounded."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.hardware.devices import in_float64
from mobileclip.losses.embeddings import check_pair
from mobileclip.losses.reinforced import teacher_logits


@attrs.frozen(kw_only=True)
class TargetDivergence:
    """Divergence of the stored targets from the exact ones, in nats: a mean over the batch for every teacher.

    Args:
        image_to_text: of the images' distributions over the texts.
        text_to_image: of the texts' distributions over the images.

    Examples:
        >>> TargetDivergence(image_to_text=(0.25, 0.5), text_to_image=(0.25, 1.0)).mean
        0.5
    """

    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the teachers and both directions."""
        values = self.image_to_text + self.text_to_image
        return sum(values) / len(values)


@torch.no_grad()
def distillation_target_kl(
    stored_image: Tensor,
    stored_text: Tensor,
    *,
    exact_image: Tensor,
    exact_text: Tensor,
    teacher_dims: Sequence[int],
    teacher_logit_scales: Sequence[float],
) -> TargetDivergence:
    """Return how far each teacher's softmaxes move when its embeddings are replaced with stored, rounded ones.

    `KL(softmax(scale * exact_image @ exact_text.T) || softmax(scale * stored_image @ stored_text.T))`, and the same
    with image and text exchanged, each the mean over its rows. As in the loss, embeddings are brought to unit length
    first. Computed in float64, so that the rounding of the computation stays below what is measured.

    Shape: all (B, sum of dims) -> per teacher.

    Args:
        stored_image: the teachers' image embeddings as they were read, concatenated.
        stored_text: the teachers' text embeddings as they were read, row by row the images' partners.
        exact_image: the image embeddings as the teachers gave them.
        exact_text: the text embeddings as the teachers gave them.
        teacher_dims: the dims of the teachers, in the order in which they are concatenated.
        teacher_logit_scales: the inverse temperatures of the teachers, after `exp`.

    Raises:
        ValueError: if the batches disagree with each other or with the dims.

    Source: the targets of Eq. 3.

    Examples:
        >>> image, text = nn.functional.normalize(torch.randn(2, 8, 64), dim=-1)
        >>> stored, exact = (image.bfloat16(), text.bfloat16()), {"exact_image": image, "exact_text": text}
        >>> 0 < distillation_target_kl(*stored, **exact, teacher_dims=(64,), teacher_logit_scales=(100.0,)).mean < 0.1
        True
    """
    check_pair(stored_image, stored_text, ("stored_image", "stored_text"))
    check_pair(exact_image, exact_text, ("exact_image", "exact_text"))
    check_pair(stored_image, exact_image, ("stored_image", "exact_image"))
    if sum(teacher_dims) != stored_image.shape[1] or len(teacher_dims) != len(teacher_logit_scales):
        raise ValueError(
            f"teacher_dims {tuple(teacher_dims)} must sum to the embeddings' dim {stored_image.shape[1]}, with one of "
            f"teacher_logit_scales {tuple(teacher_logit_scales)} for each"
        )
    stored, exact = (
        teacher_logits(in_float64(image), in_float64(text), teacher_dims, teacher_logit_scales)
        for image, text in ((stored_image, stored_text), (exact_image, exact_text))
    )
    found = [(_divergence(a, b), _divergence(a.mT, b.mT)) for a, b in zip(stored, exact, strict=True)]
    image_to_text, text_to_image = zip(*found, strict=True)
    return TargetDivergence(image_to_text=image_to_text, text_to_image=text_to_image)


def _divergence(logits: Tensor, targets: Tensor) -> float:
    predicted, target = logits.log_softmax(dim=1), targets.log_softmax(dim=1)
    return float(F.kl_div(predicted, target, reduction="batchmean", log_target=True))

"""A linear classifier on embeddings that stay as they are: multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.evaluation.metrics.ranking import require_embeddings

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Penalties that are tried, the strongest first: a fit starts where the one before ended."""

_MOST_STEPS, _HISTORY = 1000, 10


@attrs.frozen(kw_only=True, eq=False)
class LinearProbe:
    """A fitted classifier: `logits = standardized(image) weight^T + bias`.

    Shape:
        weight: `(classes, dim)`; bias: `(classes,)`.

    Args:
        weight: of the unit-length embeddings times the root of their dim.
        bias: of every class.
        penalty: that it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    penalty: float

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits of the classes for each image.

        Shape:
            image: `(images, dim)`; result: `(images, classes)`.
        """
        return F.linear(_scaled(image), self.weight, self.bias)


def fit_linear_probe(
    image: Tensor, labels: Tensor, *, num_classes: int, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Return the classifier of the lowest loss.

    `mean cross-entropy + penalty / 2 |weight|^2`, by L-BFGS, until its gradient is gone: as scikit-learn's logistic
    regression with `C = 1 / (penalty * images)`.

    Shape:
        image: `(images, dim)`; labels: `(images,)`.

    Args:
        image: embeddings, brought to unit length here.
        labels: index of each image's class.
        num_classes: classes to choose from.
        penalty: above zero.
        start: where to begin, such as what another penalty gave; zeros without.

    Raises:
        ValueError: if an embedding is not finite, or the penalty is not above zero.
    """
    require_embeddings("image", image)
    if penalty <= 0:
        raise ValueError(f"penalty is {penalty}, expected a number above zero")
    scaled = _scaled(image)
    weight = torch.zeros(num_classes, image.shape[1]) if start is None else start.weight.clone()
    bias = torch.zeros(num_classes) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MOST_STEPS,
        history_size=_HISTORY,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(scaled, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.inference_mode(mode=False), torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LinearProbe(weight=weight.detach(), bias=bias.detach(), penalty=penalty)


def chosen_linear_probe(
    image: Tensor,
    labels: Tensor,
    held_out: Tensor,
    *,
    num_classes: int,
    penalties: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Return the classifier of all images, with the penalty that is best where it was not fitted.

    Shape:
        image: `(images, dim)`; labels, held_out: `(images,)`.

    Args:
        image: embeddings, brought to unit length here.
        labels: index of each image's class.
        held_out: boolean: which images decide between penalties, after a fit to the others. Where these are none, or
            all, the middle one is taken.
        num_classes: classes to choose from.
        penalties: the strongest first; of equally good ones, the strongest is taken.

    Source: Radford et al. 2021, appendix A.3, which chooses the penalty on a validation set and fits again with it.
    """
    best = penalties[len(penalties) // 2]
    if 0 < int(held_out.sum()) < len(held_out):
        fitted, most_right = None, -1.0
        for penalty in penalties:
            fitted = fit_linear_probe(
                image[~held_out], labels[~held_out], num_classes=num_classes, penalty=penalty, start=fitted
            )
            right = float((fitted.logits(image[held_out]).argmax(dim=1) == labels[held_out]).float().mean())
            if right > most_right:
                best, most_right = penalty, right
    return fit_linear_probe(image, labels, num_classes=num_classes, penalty=best)


def _scaled(image: Tensor) -> Tensor:
    scaled: Tensor = F.normalize(image.float(), dim=-1) * image.shape[1] ** 0.5
    return scaled

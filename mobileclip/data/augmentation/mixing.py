"""Mixup and CutMix: images of a batch become mixtures of two, and so do their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from attrs import validators
from torch import Tensor

from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class MixingSpec:
    """Mixup or CutMix, one of the two for a whole batch, with one share for all its images.

    Image `i` meets image `j = B - 1 - i`. With a share `s` from Beta(alpha, alpha), mixup gives `s x_i + (1 - s) x_j`.
    CutMix gives `x_i` with a rectangle of `x_j`, whose area is `1 - s` of the image where it does not reach over the
    rim. Targets are mixed by the share of the pixels.

    Args:
        mixup_alpha: of the distribution of mixup's share; 0 for no mixup.
        cutmix_alpha: of the distribution of CutMix's share; 0 for no CutMix.
        cutmix_share: of the batches that are mixed at all, those by CutMix, where there are both.
        probability: of a batch to be mixed.

    Raises:
        ValueError: if a number is out of its range, or both alphas are 0.

    Source: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix". The defaults are those of FastViT's training, whose
        script mixes by batch as here.

    Examples:
        >>> images, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
        >>> mixed, shares = MixingSpec().mix(images, targets)
        >>> mixed.shape, bool(torch.allclose(shares.sum(dim=1), torch.ones(4)))
        (torch.Size([4, 3, 8, 8]), True)
    """

    mixup_alpha: float = attrs.field(default=0.2, validator=[validators.ge(0), validators.le(1000)])
    cutmix_alpha: float = attrs.field(default=1.0, validator=[validators.ge(0), validators.le(1000)])
    cutmix_share: float = attrs.field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    probability: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])

    def __attrs_post_init__(self) -> None:
        if self.mixup_alpha == 0 and self.cutmix_alpha == 0:
            raise ValueError("mixup_alpha and cutmix_alpha are both 0, so there is nothing to mix; leave mixing out")

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets; what is drawn comes from torch's own random numbers on the CPU.

        Shape:
            images `(batch, channels, height, width)` and targets `(batch, classes)`, and the same.

        Args:
            images: not changed.
            targets: probabilities of the classes.
        """
        mixture = self.draw(images.shape, images.device)
        if mixture is None:
            return images, targets
        return mixture.images(images, images.flip(0)), mixture.between(targets, targets.flip(0))

    def draw(self, shape: Sequence[int], device: torch.device) -> Mixture | None:
        """Return how to mix a batch, or None for one that stays as it is.

        Args:
            shape: of its images; height and width are the last two.
            device: where they are.
        """
        if _uniform() >= self.probability:
            return None
        cuts = self.mixup_alpha == 0 or (self.cutmix_alpha > 0 and _uniform() < self.cutmix_share)
        alpha = self.cutmix_alpha if cuts else self.mixup_alpha
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if not cuts:
            return Mixture(share=torch.tensor(share, device=device))
        height, width = shape[-2:]
        side = math.sqrt(1 - share)
        top, bottom = _span(height, side)
        left, right = _span(width, side)
        own = torch.ones(height, width, dtype=torch.bool)
        own[top:bottom, left:right] = False
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return Mixture(share=torch.tensor(share, device=device), own=own.to(device))


@attrs.frozen(kw_only=True, eq=False)
class Mixture:
    """The mixing weights of one batch for Mixup or CutMix, as tensors.

    Tensors and not numbers say so: `torch.compile` would compile anew for every other number.

    Shape:
        share: a scalar; own: (height, width), bool.

    Args:
        share: of an image's own pixels, from 0 to 1.
        own: where CutMix leaves them; None for mixup.
    """

    share: Tensor
    own: Tensor | None = None

    def images(self, images: Tensor, partners: Tensor) -> Tensor:
        """Return images, all of a batch or some, mixed with their partners; neither are changed.

        Shape:
            `(batch, channels, height, width)` twice, normalised, and the same.
        """
        return self.between(images, partners) if self.own is None else torch.where(self.own, images, partners)

    def between(self, x: Tensor, partners: Tensor) -> Tensor:
        """Return the mean of `x` and its partners, weighted by the share."""
        return self.share * x + (1 - self.share) * partners


def _uniform() -> float:
    return float(torch.rand(()))


def _span(length: int, fraction: float) -> tuple[int, int]:
    """Return first and last, exclusive, of a stretch around a place drawn evenly, cut at the rim."""
    size, centre = int(length * fraction), int(_uniform() * length)
    return max(0, centre - size // 2), min(length, centre + size - size // 2)

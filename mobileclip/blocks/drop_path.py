"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, drop the whole branch for some of the samples: `y = x * keep / (1 - rate)`, `keep` 0 or 1 a sample.

    Shape:
        `(batch, ...)` in and out.

    Args:
        rate: probability that a sample's branch is dropped, from 0 to below 1.

    Raises:
        ValueError: if the rate is none.

    Source: Huang et al., "Deep Networks with Stochastic Depth"; FastViT's recipe for ImageNet.

    Examples:
        >>> DropPath(0.5)(torch.ones(100, 3)).unique()  # a dropped sample, and one that is kept
        tensor([0., 2.])
        >>> DropPath(0.5).eval()(torch.ones(100, 3)).unique()
        tensor([1.])
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the rate of dropped paths is from 0 to below 1, not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, scaled where it is kept; in evaluation mode as it is."""
        if not self.training or not self.rate:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"

"""What a tower in int8 keeps of its embeddings in float32, on inputs that it was not tuned on."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from mobileclip.inference.comparison import LEAST_COSINE, first_results, least_agreement

_CHANCE = 0.025


@attrs.frozen(kw_only=True)
class Agreement:
    """The number of queries whose first result in int8 is that in float32.

    Args:
        same: that have.
        total: of all, at least 1.

    Examples:
        >>> str(Agreement(same=49, total=50))
        '98.0% of 50 (89.4% to 99.9%)'
    """

    same: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the part that agrees, Clopper and Pearson's."""
        from scipy.special import betaincinv

        same, others = self.same, self.total - self.same
        low = float(betaincinv(same, others + 1, _CHANCE)) if same else 0.0
        return low, float(betaincinv(same + 1, others, 1 - _CHANCE)) if others else 1.0

    def __str__(self) -> str:
        """Return the part with its interval, for a person."""
        low, high = self.interval
        return f"{self.same / self.total:.1%} of {self.total:,} ({low:.1%} to {high:.1%})"


@attrs.frozen(kw_only=True)
class TowerQuality:
    """Cosines and rankings of an int8 tower's embeddings against those in float32.

    Args:
        num_inputs: that it was measured on.
        smallest_cosine: of an embedding with that in float32.
        mean_cosine: over the inputs.
        finds: what the inputs find first, among the other tower's embeddings in float32; among one another where there
            is no other tower.
        is_found: what the other tower's inputs find first among these; None where there are none.
    """

    num_inputs: int
    smallest_cosine: float
    mean_cosine: float
    finds: Agreement
    is_found: Agreement | None = None

    @classmethod
    def of(cls, embeddings: Tensor, expected: Tensor, others: Tensor | None = None) -> TowerQuality:
        """Return what embeddings keep of those that are expected.

        Shape:
            all `(inputs, dim)`; at least two inputs.

        Args:
            embeddings: in int8.
            expected: the same in float32.
            others: of the other tower, in float32.
        """
        cosines = torch.cosine_similarity(embeddings.double(), expected.double(), dim=1)
        found = None
        if others is None:
            finds = _agreement(first_results(embeddings, embeddings), first_results(expected, expected))
        else:
            finds = _agreement(first_results(embeddings, others), first_results(expected, others))
            found = _agreement(first_results(others, embeddings), first_results(others, expected))
        return cls(
            num_inputs=len(embeddings),
            smallest_cosine=float(cosines.min()),
            mean_cosine=float(cosines.mean()),
            finds=finds,
            is_found=found,
        )

    @property
    def refusal(self) -> str:
        """Why the acceptance checks of int8 refuse the tower; empty where they do not."""
        if not self.smallest_cosine >= LEAST_COSINE["int8"]:
            return f"the smallest cosine is {self.smallest_cosine:.4f}, expected at least {LEAST_COSINE['int8']}"
        both = [one for one in (self.finds, self.is_found) if one is not None]
        same, total = sum(one.same for one in both), sum(one.total for one in both)
        if same / total < (least := least_agreement(total)):
            return f"{same / total:.1%} of {total:,} first results are as in float32, expected at least {least:.1%}"
        return ""

    @property
    def has_margin(self) -> bool:
        """Whether it passes, and of cosine loses half of what it may: what is decided on few inputs should."""
        return not self.refusal and 1 - self.smallest_cosine <= (1 - LEAST_COSINE["int8"]) / 2

    def __str__(self) -> str:
        """Return a line for a person."""
        found = "" if self.is_found is None else f", and is found by {self.is_found}"
        verdict = f"; refused: {self.refusal}" if self.refusal else "; passes the acceptance checks of int8"
        return (
            f"{self.num_inputs:,} held-out inputs, cosine {self.mean_cosine:.5f}, at least {self.smallest_cosine:.4f}; "
            f"finds the same first as in float32: {self.finds}{found}{verdict}"
        )


def _agreement(given: Tensor, expected: Tensor) -> Agreement:
    return Agreement(same=int((given == expected).sum()), total=len(given))

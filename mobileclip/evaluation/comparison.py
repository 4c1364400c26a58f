"""A model's results beside published ones: what differs, and by more than the noise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE

_STANDARD_ERRORS = 2.0


@attrs.frozen(kw_only=True)
class ComparisonRow:
    """One data set; fractions of one, None where a side has no result.

    Args:
        name: the data set.
        metric: what is compared.
        measured: the model's result.
        published: the published one.
        noise: by how much two equally good models may differ: two standard errors of the difference of two accuracies
            on so many images.
    """

    name: str
    metric: str
    measured: float | None
    published: float | None
    noise: float

    @property
    def difference(self) -> float | None:
        """Measured minus published, where there are both."""
        return None if self.measured is None or self.published is None else self.measured - self.published

    @property
    def stands_out(self) -> bool:
        """Whether the two differ by more than the noise."""
        return self.difference is not None and abs(self.difference) > self.noise


def compare_results(
    measured: Mapping[str, DatasetResult], published: Mapping[str, DatasetResult]
) -> tuple[ComparisonRow, ...]:
    """Return a row for every data set of the suite that either side has a result on.

    Args:
        measured: by key.
        published: by key.
    """
    return tuple(
        compare_result(
            entry.name, entry.main_metric, measured.get(entry.key), published.get(entry.key), entry.num_images
        )
        for entry in SUITE
        if entry.key in measured or entry.key in published
    )


def compare_result(
    name: str, metric: str, measured: DatasetResult | None, published: DatasetResult | None, num_images: int | None
) -> ComparisonRow:
    """Return the row of one data set.

    Args:
        name: of the data set.
        metric: what counts of it.
        measured: the model's result.
        published: the published one.
        num_images: of the data set, for a side that does not say how many it used; where nobody knows, the noise is
            infinite and nothing stands out.
    """
    sides = [side for side in (measured, published) if side is not None]
    variances = [_variance(side.main_metric, side.num_images or num_images) for side in sides]
    return ComparisonRow(
        name=name,
        metric=metric,
        measured=None if measured is None else measured.main_metric,
        published=None if published is None else published.main_metric,
        noise=_STANDARD_ERRORS * math.sqrt(2 * sum(variances) / len(variances)) if variances else math.inf,
    )


def _variance(score: float, num_images: int | None) -> float:
    """Return the variance of an accuracy over so many images; other metrics may lie outside, and have none known."""
    return math.inf if not num_images else max(0.0, score * (1 - score)) / num_images

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
        ComparisonRow(
            name=entry.name,
            metric=entry.main_metric,
            measured=_main(measured, entry.key),
            published=_main(published, entry.key),
            noise=_noise([_main(measured, entry.key), _main(published, entry.key)], entry.num_images),
        )
        for entry in SUITE
        if entry.key in measured or entry.key in published
    )


def _main(results: Mapping[str, DatasetResult], key: str) -> float | None:
    return results[key].main_metric if key in results else None


def _noise(scores: list[float | None], num_images: int) -> float:
    variances = [score * (1 - score) / num_images for score in scores if score is not None and 0 <= score <= 1]
    return _STANDARD_ERRORS * math.sqrt(2 * sum(variances) / max(1, len(variances)))

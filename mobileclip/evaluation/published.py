"""The figures that the releases of MobileCLIP and MobileCLIP2 publish of their models, data set by data set."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from mobileclip.blocks import models
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE
from mobileclip.inputs import Interpolation
from mobileclip.registry import nearest

if TYPE_CHECKING:
    from mobileclip.encoders import DualEncoderSpec

UNKNOWN_FILTER = frozenset(f"mobileclip{size}" for size in ("_s3", "_s4", "2_s0", "2_s2", "2_b", "2_s3", "2_s4"))
"""Models that we resize for with the bilinear filter of open_clip's tags, while their release's README takes bicubic.

Which of the two their figures had is published nowhere.
"""

NOT_EVALUATED = {
    "fairness/fairface": "the release lists it without a figure",
    "fairness/utkface": "the release lists it without a figure",
    "longclip/sharegpt4v-llava15k": "which 15,295 pairs of ShareGPT4V its figures were measured on is not published",
}
"""Data sets in the release's tables of results that are not evaluated here, and why."""


def published_models() -> tuple[str, ...]:
    """Return the names of the models whose results are published."""
    return tuple(_figures())


def published_results(model: str) -> dict[str, DatasetResult]:
    """Return a model's published results by key: the 38 data sets, and those of MobileCLIP2 nine more.

    Those of `NOT_EVALUATED` are left out.

    Args:
        model: its name, such as `mobileclip_s2`.

    Raises:
        ValueError: if none are published of it.

    Source: the results that come with the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691).
    """
    if model not in _figures():
        raise ValueError(f"no results of {model!r} are published; {nearest(model, _figures())}")
    names = {entry.key: entry.name for entry in SUITE}
    return {
        key: DatasetResult(key=key, dataset=names.get(key, key.rpartition("/")[2]), metrics=metrics)
        for key, metrics in _figures()[model].items()
    }


def published_with(model: str | None, interpolation: Interpolation | None) -> str | None:
    """Return a model's name where its published figures may have been measured with a filter; None otherwise.

    Args:
        model: a name; None for a model without.
        interpolation: the filter that resizes pictures; None for the model's own.

    Examples:
        >>> [published_with(name, "bicubic") for name in ("mobileclip_s2", "mobileclip2_s2")]
        [None, 'mobileclip2_s2']
    """
    if model is None or model not in _figures():
        return None
    own = cast("DualEncoderSpec", models[model]).image.input.interpolation
    return model if interpolation in (None, own) or model in UNKNOWN_FILTER else None


@cache
def _figures() -> dict[str, dict[str, dict[str, float]]]:
    figures: dict[str, Any] = json.loads((files(__package__) / "published.json").read_text(encoding="utf-8"))
    return figures

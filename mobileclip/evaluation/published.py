"""The figures that the releases of MobileCLIP and MobileCLIP2 publish of their models, data set by data set."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE


def published_models() -> tuple[str, ...]:
    """Return the names of the models whose results are published."""
    return tuple(_figures())


def published_results(model: str) -> dict[str, DatasetResult]:
    """Return a model's published results by key: the 38 data sets, and those of MobileCLIP2 nine more.

    The release has one more figure of MobileCLIP2, `longclip/sharegpt4v-llava15k`. It is left out: all its values are
    multiples of 1/15,295, but which 15,295 pairs of ShareGPT4V it was measured on is published nowhere, so that nothing
    can be put beside it.

    Args:
        model: its name, such as `mobileclip_s2`.

    Raises:
        ValueError: if none are published of it.

    Source: the results that come with the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691).
    """
    if model not in _figures():
        raise ValueError(f"no results of {model!r} are published; there are those of {', '.join(_figures())}")
    names = {entry.key: entry.name for entry in SUITE}
    return {
        key: DatasetResult(key=key, dataset=names.get(key, key.rpartition("/")[2]), metrics=metrics)
        for key, metrics in _figures()[model].items()
    }


@cache
def _figures() -> dict[str, dict[str, dict[str, float]]]:
    figures: dict[str, Any] = json.loads((files(__package__) / "published.json").read_text(encoding="utf-8"))
    return figures

"""The published models as a report shows them: results, latency on a phone, size."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from mobileclip.evaluation.encoding.timing import Latency
from mobileclip.evaluation.published import published_results
from mobileclip.evaluation.report.values import ModelResults


def published_model(name: str) -> ModelResults:
    """Return a published model with its published results, latency and number of parameters.

    Args:
        name: such as `mobileclip_s2`; see `published_models`.

    Raises:
        ValueError: if no results of it are published.

    Source: the tables of models in the releases of MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691),
        which measured latencies on an iPhone 12 Pro Max.
    """
    results = published_results(name)
    figures = _figures()
    model = figures["models"][name]
    return ModelResults(
        name=name,
        results=results,
        source="published",
        latencies=(
            Latency(image_ms=model["image_ms"], text_ms=model["text_ms"], device=figures["device"], source="published"),
        ),
        num_parameters=round(model["num_image_parameters"] + model["num_text_parameters"]),
    )


@cache
def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((files(__package__) / "latencies.json").read_text(encoding="utf-8"))
    return figures

"""The values that a report shows: models, measured or published, with results, latency and provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

import attrs
from attrs import validators

from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.encoding import Latency as Latency, Source  # noqa: PLC0414  the room gives it
from mobileclip.evaluation.metrics.intervals import Interval, proportion_interval
from mobileclip.evaluation.metrics.outcomes import Outcomes
from mobileclip.evaluation.published import published_results
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.suite import SUITE
from mobileclip.strict import repeated

_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Coverage:
    """The number of images that a result is based on, and of those left out by reason.

    Args:
        num_used: images evaluated.
        left_out: number of images, or whole shards, left out, by reason.
    """

    num_used: int = attrs.field(validator=validators.ge(0))
    left_out: Mapping[str, int] = attrs.field(factory=dict)

    @classmethod
    def of(cls, report: SkipReport) -> Coverage:
        """Return what a report of skips says."""
        return cls(num_used=report.num_read, left_out=dict(report.counts.most_common()))

    @property
    def num_left_out(self) -> int:
        """Things left out, for all reasons."""
        return sum(self.left_out.values())


@attrs.frozen(kw_only=True)
class Provenance:
    """When, where and with which weights results were measured.

    Args:
        when: when they were measured.
        version: of this library.
        weights_sha256: hash of the weights; None where nobody took it.
        device: the machine that measured.

    Raises:
        ValueError: if the hash is none.
    """

    when: datetime
    version: str
    weights_sha256: str | None = attrs.field(default=None)
    device: str = ""

    @weights_sha256.validator
    def _require_hash(self, _: attrs.Attribute[str | None], value: str | None) -> None:
        if value is not None and not _SHA256.fullmatch(value):
            raise ValueError(f"weights_sha256 is {value[:80]!r}, expected 64 hexadecimal digits in lower case")


@attrs.frozen(kw_only=True)
class ModelResults:
    """A model in a report.

    Args:
        name: how the report calls it; no two alike.
        results: by key of the data set.
        source: whether they were measured here or published.
        reference: name of the model in the same report that these results are compared with.
        latencies: on one device or several.
        num_parameters: of both towers.
        coverage: how much of each data set was used, by key, where that is known.
        provenance: how measured results came about, where that is known.
        outcomes: of the main metrics image by image, by key, where they are known: for intervals and paired tests.

    Raises:
        ValueError: if there is no name, no such source, or coverage of a data set without a result.
    """

    name: str = attrs.field(validator=validators.min_len(1))
    results: Mapping[str, DatasetResult]
    source: Source = attrs.field(validator=validators.in_(("measured", "published")))
    reference: str | None = None
    latencies: tuple[Latency, ...] = ()
    num_parameters: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    coverage: Mapping[str, Coverage] = attrs.field(factory=dict)
    provenance: Provenance | None = None
    outcomes: Mapping[str, Outcomes] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for key in self.coverage:
            if key not in self.results:
                raise ValueError(f"{self.name!r} has coverage of {key!r} but no result on it; leave it out")

    def interval(self, key: str) -> Interval | None:
        """Return where the true main metric of a data set lies with 95 % confidence.

        Without outcomes it is that of a share of as many images as the result, or the suite, says; None where neither
        does.
        """
        if key in self.outcomes:
            return self.outcomes[key].interval
        result, suite = self.results[key], {entry.key: entry.num_images for entry in SUITE}
        total, share = result.num_images or suite.get(key), result.main_metric
        return proportion_interval(share * total, total) if total and 0 <= share <= 1 else None


def require_models(models: Sequence[ModelResults]) -> None:
    """Refuse models that one report cannot hold.

    Raises:
        ValueError: if there is none, two have one name, or a reference is not among them.
    """
    names = [model.name for model in models]
    if not names:
        raise ValueError("a report needs at least one model")
    if twice := repeated(names):
        raise ValueError(f"models of one report need different names, repeated: {', '.join(map(repr, twice))}")
    for model in models:
        if model.reference is not None and (model.reference not in names or model.reference == model.name):
            raise ValueError(
                f"{model.name!r} is compared with {model.reference!r}, which is no other model of the report; there "
                f"are {', '.join(map(repr, names))}"
            )


def reference_of(model: ModelResults, models: Sequence[ModelResults]) -> ModelResults | None:
    """Return the model that another is compared with, if any."""
    return next((one for one in models if one.name == model.reference), None)


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

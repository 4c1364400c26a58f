"""Compares an export with its model, and defines the gates that it must pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from mobileclip.export.contract import feature_name
from mobileclip.export.spec import TEXT_SPACE, Stage, Tower
from mobileclip.hardware.precision import Precision
from mobileclip.inference.comparison import (
    LEAST_AGREEMENT,
    LEAST_COSINE,
    first_results,
    least_agreement,
)
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

RANKING_GATE = "ranking agreement"
CLASSES = "classes"
# Cosines do not see lengths. Rounding moves them by less than this; a lost normalisation, or a lost factor, by more.
MOST_LENGTH_ERROR: dict[Precision, float] = {
    "float32": 1e-3,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "int8": 0.2,
    "int8-weights": 0.2,
}
MOST_MEAN_ERROR: dict[Precision, float] = {**MOST_LENGTH_ERROR, "float32": 1e-5}
"""Of the mean over places in the space of texts, from the embedding of the same file, whose length counts as 1."""
# Of the reference's spread: embeddings that have moved together by more have lost what tells images apart.
LEAST_SPREAD = 0.5
# For the rounding of agreements that are compared.
_ROUNDING = 1e-7


@attrs.frozen(kw_only=True, field_transformer=strict)
class Gate:
    """One acceptance check of an export: a measured value and its limit.

    Args:
        name: what it is.
        value: what was measured; None where it could not be, and then the gate has failed.
        bound: what it must reach.
        passed: whether it does.
    """

    name: str
    value: float | None
    bound: str
    passed: bool

    def __str__(self) -> str:
        """Return one line on what was measured and what was expected."""
        return f"{self.name} is {None if self.value is None else f'{self.value:.7g}'}, expected {self.bound}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class TowerParity:
    """Deviation of an exported tower's embeddings, or feature maps of a stage, from the float32 model.

    A map counts as one long vector.

    Args:
        tower: which it is.
        count: embeddings that were compared.
        cosine_minimum: the least cosine of an embedding with its reference; None where a value is not finite.
        cosine_median: the median of those cosines.
        length_error: the largest relative error of an embedding's length.
        num_not_finite: embeddings with NaN or infinity.
        num_zero: embeddings of length zero, which an overflow in front of a normalisation gives.
        spread: `1 - |mean of the unit embeddings|`, zero where all are the same.
        reference_spread: the same of the model in float32.
        stage: whose feature maps these are; None for the embeddings.
        precision: of the file, where there are several.
        mean_error: of maps in the space of texts, the largest distance of a mean over places from the embedding that
            the file gives beside it, relative to that; None where a value is not finite, and of all else.
    """

    tower: Tower
    count: int
    cosine_minimum: float | None
    cosine_median: float | None
    length_error: float | None
    num_not_finite: int
    num_zero: int
    spread: float | None
    reference_spread: float
    stage: Stage | None = None
    precision: Precision | None = None
    mean_error: float | None = None


@attrs.frozen(kw_only=True, field_transformer=strict)
class Ranking:
    """Share of queries whose first result is the same in the export as in the float32 model.

    Args:
        kind: `image-text`: captions for images and images for captions; `neighbours`: the nearest other input of the
            same tower, where the model has one tower alone; `classes`: the class of the largest logit.
        num_queries: how many were ranked.
        agreement: share of them with the same first result.
    """

    kind: str
    num_queries: int
    agreement: float


@attrs.frozen(kw_only=True, field_transformer=strict)
class Report:
    """The report of an export: how near it is to its model, and its acceptance checks.

    Args:
        data: name of the data set.
        runtime: what ran the files.
        image_names: the images, in the order of the stored embeddings.
        captions: the captions, in the order of the stored embeddings.
        skipped: what could not be used of the data, by reason.
        towers: each exported tower, and each stage whose feature maps it gives.
        ranking: of the towers together.
        gates: all of them.
    """

    data: str
    runtime: str
    image_names: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: Mapping[str, int]
    towers: tuple[TowerParity, ...]
    ranking: Ranking
    gates: tuple[Gate, ...]

    def beside(self, other: Report, precision: Precision) -> Report:
        """Return this report with what was measured of another precision; its own ranking stays.

        Args:
            other: of the same inputs.
            precision: that the other is of.
        """
        return attrs.evolve(
            self,
            towers=(*self.towers, *(attrs.evolve(one, precision=precision) for one in other.towers)),
            gates=(*self.gates, *(attrs.evolve(one, name=f"{precision}: {one.name}") for one in other.gates)),
        )

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def is_ranked(self) -> bool:
        """Whether rankings were checked, of every precision; they are not where a model's embeddings hardly differ."""
        num_precisions = 1 + len({one.precision for one in self.towers} - {None})
        return sum(gate.name.endswith(RANKING_GATE) for gate in self.gates) >= num_precisions

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed, a line each."""
        return tuple(str(gate) for gate in self.gates if not gate.passed)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return f"{to_json(self, indent=2)}\n"

    @staticmethod
    def from_json(text: str) -> Report:
        """Return the report that `to_json` wrote.

        Raises:
            ValueError: if it is none.
        """
        return from_json(text, Report)


def compare_tower(tower: Tower, exported: Tensor, reference: Tensor, *, stage: Stage | None = None) -> TowerParity:
    """Return the deviation of exported embeddings, or feature maps, from the model's own.

    Shape:
        both `(count, embedding_dim)`, or `(count, channels, rows, columns)`.

    Args:
        tower: which it is.
        exported: what the file gives.
        reference: what the model gives.
        stage: whose feature maps these are; None for embeddings.
    """
    of_export, of_reference = exported.double().flatten(1), reference.double().flatten(1)
    finite = of_export.isfinite().all(dim=1)
    lengths, expected = of_export.norm(dim=1), of_reference.norm(dim=1)
    all_finite = bool(finite.all())
    cosines = (of_export * of_reference).sum(dim=1) / (lengths * expected).clamp_min(torch.finfo(torch.float64).tiny)
    return TowerParity(
        tower=tower,
        count=len(of_export),
        cosine_minimum=float(cosines.min()) if all_finite else None,
        cosine_median=float(cosines.quantile(0.5)) if all_finite else None,
        length_error=float((lengths / expected - 1).abs().max()) if all_finite else None,
        num_not_finite=int((~finite).sum()),
        num_zero=int((lengths == 0).sum()),
        spread=spread_of(of_export) if all_finite else None,
        reference_spread=spread_of(of_reference),
        stage=stage,
    )


def mean_error(maps: Tensor, embeddings: Tensor) -> float | None:
    """Return how far means over places are from embeddings, relative to these; None where a value is not finite.

    Shape:
        `(count, embedding_dim, rows, columns)`, and `(count or more, embedding_dim)`.
    """
    rows = embeddings[: len(maps)].double()
    errors = (maps.double().mean((2, 3)) - rows).norm(dim=1) / rows.norm(dim=1)
    return float(errors.max()) if bool(errors.isfinite().all()) else None


def compare_rankings(
    exported: Mapping[Tower, Tensor], reference: Mapping[Tower, Tensor], *, of_classes: bool = False
) -> Ranking:
    """Return how often the export and the model rank the same result first.

    Args:
        exported: embeddings by tower; a tower that was not exported is taken from `reference`.
        reference: the model's own, of all towers that it has.
        of_classes: whether they are logits of classes.
    """
    if of_classes:
        agree = exported["image"].argmax(dim=1) == reference["image"].argmax(dim=1)
        return Ranking(kind=CLASSES, num_queries=len(agree), agreement=float(agree.double().mean()))
    both = {**reference, **exported}
    if len(both) == 2:
        pairs: list[tuple[Tower, Tower]] = [("image", "text"), ("text", "image")]
        kind = "image-text"
    else:
        pairs = [(tower, tower) for tower in both]
        kind = "neighbours"
    same = torch.cat(
        [
            first_results(both[one], both[other]) == first_results(reference[one], reference[other])
            for one, other in pairs
        ]
    )
    return Ranking(kind=kind, num_queries=len(same), agreement=float(same.double().mean()))


def gates_of(towers: tuple[TowerParity, ...], ranking: Ranking, precision: Precision) -> tuple[Gate, ...]:
    """Return all gates of an export.

    A model that gives different inputs nearly the same embeddings, as one of random weights may, has no gates of the
    spread and of rankings: these differ although all embeddings are within the tolerance of the model's.

    Args:
        towers: what was measured of each.
        ranking: what was measured of them together.
        precision: of the export.
    """
    what = "logits" if ranking.kind == CLASSES else "embeddings"
    gates = [gate for parity in towers for gate in _tower_gates(parity, precision, what)]
    least = least_agreement(ranking.num_queries)
    bound = f">= {least:.4g}: {LEAST_AGREEMENT} within the 95 % interval of {ranking.num_queries} queries"
    # Floats of the same fraction, but for the last bit.
    passed = ranking.agreement > least - _ROUNDING
    if ranking.kind == CLASSES or not any(_is_constant(one, precision) for one in towers if one.stage is None):
        gates.append(Gate(name=RANKING_GATE, value=ranking.agreement, bound=bound, passed=passed))
    return tuple(gates)


def _is_constant(parity: TowerParity, precision: Precision) -> bool:
    """Return whether the model's own embeddings are as near to each other as a file's may be to them."""
    return parity.reference_spread <= 1 - LEAST_COSINE[precision]


def _tower_gates(parity: TowerParity, precision: Precision, what: str) -> list[Gate]:
    least, most = LEAST_COSINE[precision], MOST_LENGTH_ERROR[precision]
    spread, enough = parity.spread, LEAST_SPREAD * parity.reference_spread
    cosine, error = parity.cosine_minimum, parity.length_error
    name = parity.tower if parity.stage is None else f"{parity.tower} {feature_name(parity.stage)}"
    what = what if parity.stage is None else "maps"
    mean, most_mean = parity.mean_error, MOST_MEAN_ERROR[precision]
    means = Gate(
        name=f"{name} mean over places, distance from the embedding",
        value=mean,
        bound=f"<= {most_mean}",
        passed=mean is not None and mean <= most_mean,
    )
    tells = Gate(
        name=f"{name} spread (zero where all {what} are the same)",
        value=spread,
        bound=f">= {enough:.3g}",
        passed=spread is not None and spread >= enough,
    )
    return [
        *([means] if parity.stage == TEXT_SPACE else []),
        Gate(
            name=f"{name} {what} with NaN or infinity",
            value=parity.num_not_finite,
            bound="0",
            passed=parity.num_not_finite == 0,
        ),
        Gate(name=f"{name} {what} of length zero", value=parity.num_zero, bound="0", passed=parity.num_zero == 0),
        Gate(
            name=f"{name} cosine, minimum",
            value=cosine,
            bound=f"> {least}",
            passed=cosine is not None and cosine > least,
        ),
        Gate(
            name=f"{name} error of lengths",
            value=error,
            bound=f"<= {most}",
            passed=error is not None and error <= most,
        ),
        *([] if _is_constant(parity, precision) else [tells]),
    ]


def spread_of(embeddings: Tensor) -> float:
    """Return how far embeddings point in different directions: `1 - |mean of the unit embeddings|`.

    Shape:
        `(count, embedding_dim)`.
    """
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return max(0.0, 1.0 - math.sqrt(float(unit.mean(dim=0).square().sum())))

"""The choices of the matrix."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from benchmarks.exports.results import Cell
from mobileclip.export import targets
from mobileclip.hardware.precision import PRECISIONS, Precision
from mobileclip.strict import strict

_TARGETS = ("onnx", "openvino", "litert", "executorch", "coreml", "coreai", "torch")


@attrs.frozen(kw_only=True, field_transformer=strict)
class ExportsBenchSpec:
    """What is exported, and what it is measured on.

    Args:
        models: as `mobileclip export` takes them; `random:mobileclip_s0` for random weights, which have no accuracy.
        targets: the formats.
        precisions: those of them that a format has.
        data: a data set to measure accuracy on, as `mobileclip eval` takes it; without it, none is.
        converter: the Python of an environment with LiteRT's converter; without it, LiteRT's cells fail.
        rounds: calls of which the median counts.
        output: where exports, results and the table go; what lies there is not measured again.
        again: measure the cells anew that failed.
        tiny: one model, one format, one precision, three rounds.
    """

    models: tuple[str, ...] = ("icons",)
    targets: tuple[str, ...] = _TARGETS
    precisions: tuple[Precision, ...] = PRECISIONS
    data: str | None = None
    converter: Path | None = None
    rounds: int = attrs.field(default=30, validator=validators.ge(1))
    output: Path = Path("outputs/exports")
    again: bool = False
    tiny: bool = False


def cells(spec: ExportsBenchSpec) -> list[Cell]:
    """Return every export, in order: formats without a precision are left out.

    Raises:
        ValueError: if a target is unknown.
    """
    return [
        Cell(model=model, target=target, precision=precision)
        for model in spec.models
        for target in spec.targets
        for precision in spec.precisions
        if precision in targets.resolve(target).precisions
    ]

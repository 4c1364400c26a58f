"""What was measured of an export, in a file that a later run goes on with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from mobileclip.hardware.precision import Precision
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import atomic_write


@attrs.frozen(kw_only=True)
class Cell:
    """One export.

    Args:
        model: what it is made of, as `mobileclip export` takes it; `random:NAME` for random weights.
        target: the format.
        precision: of the export.
    """

    model: str
    target: str
    precision: Precision

    def __str__(self) -> str:
        """Return what it is called in messages, and as a folder."""
        return f"{self.model.rpartition('/')[2].replace(':', '-')}_{self.target}_{self.precision}"


@attrs.frozen(kw_only=True)
class Loss:
    """What an export loses on a data set.

    Args:
        dataset: its name.
        metric: what counts.
        model: of the model, as a fraction of one.
        export: of the export.
        low, high: where the true difference lies with 95 % confidence; None where nobody knows.
        num_images: that both were asked about.
    """

    dataset: str
    metric: str
    model: float
    export: float
    low: float | None
    high: float | None
    num_images: int | None


@attrs.frozen(kw_only=True)
class Measured:
    """What was measured of an export.

    Args:
        megabytes: of the towers' files, with all that lies beside them for the runtime.
        cosines: least one with the model, of images and of captions.
        agreement: the part of queries whose first result is the model's.
        failures: gates that failed.
        kept: the number of layers in float32, or in 8 bits of 4, that the gates asked for.
        image_ms, text_ms: the median for one input.
        seconds: that the export took, with its checks.
        loss: on the data set, where there is one.
    """

    megabytes: float
    cosines: tuple[float | None, float | None]
    agreement: float
    failures: tuple[str, ...]
    kept: int
    image_ms: float
    text_ms: float
    seconds: float
    loss: Loss | None


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of a cell: figures, or why there are none.

    Args:
        cell: the export.
        machine: where it was measured.
        measured: the figures.
        failure: what went wrong.
    """

    cell: Cell
    machine: str
    measured: Measured | None = None
    failure: str | None = None


def read_outcomes(path: Path) -> list[Outcome]:
    """Return what a file holds; nothing where there is none.

    Raises:
        ValueError: if it is no such file.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_outcome(text, f"{path}, line {number}") for number, text in enumerate(lines, start=1)]


def _outcome(text: str, place: str) -> Outcome:
    try:
        return from_json(text, Outcome)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; remove the file, or choose another --output") from error


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write a file anew, whole or not at all."""
    with atomic_write(path) as file:
        for outcome in outcomes:
            file.write(f"{to_json(outcome)}\n".encode())

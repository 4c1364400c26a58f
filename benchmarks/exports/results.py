"""What was measured of an export, in a file that a later run goes on with."""

from __future__ import annotations

import attrs

from mobileclip.hardware.precision import Precision


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

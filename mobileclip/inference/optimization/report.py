"""The report of an optimisation: each form tried, its speed and error, and why it was used or not."""

from __future__ import annotations

import json

import attrs

from mobileclip.inference.optimization.towers import Form


@attrs.frozen(kw_only=True)
class Trial:
    """One form that was tried.

    Args:
        form: what was tried.
        milliseconds: median time of the example batch; None if it was not timed.
        speed_up: how many times as fast as the plain tower it was: the median over neighbouring calls.
        cosine: smallest cosine between its embeddings and the plain ones; None if there are none. In int8, of inputs
            that it was not calibrated with.
        error: largest norm of an embedding's difference, over the norm of the plain one.
        refused: why it cannot be used; empty if it could.
    """

    form: Form
    milliseconds: float | None = None
    speed_up: float | None = None
    cosine: float | None = None
    error: float | None = None
    refused: str = ""

    def __str__(self) -> str:
        """Return one line of a report."""
        parts = [f"{self.form!s:28s}"]
        if self.milliseconds is not None and self.speed_up is not None:
            parts.append(f"{self.milliseconds:8.1f} ms, {self.speed_up:.2f} times as fast")
        if self.cosine is not None and self.error is not None:
            parts.append(f"cosine {self.cosine:.6f}, error {self.error:.1e}")
        if self.refused:
            parts.append(f"not usable: {self.refused}")
        return "; ".join(parts)


@attrs.frozen(kw_only=True)
class TowerReport:
    """The forms that were tried for one tower, with times and distances.

    Args:
        tower: `image` or `text`.
        batch_size: of the example.
        plain_milliseconds: median time of the model as it came.
        trials: what was tried, in order.
        used: the fastest of them, or None: none helps, and the plain folded tower is used.
    """

    tower: str
    batch_size: int
    plain_milliseconds: float
    trials: tuple[Trial, ...]
    used: Trial | None

    def __str__(self) -> str:
        """Return a few lines, one for each trial, a star in front of the one that is used."""
        lines = [f"{self.tower}, batch of {self.batch_size}: {self.plain_milliseconds:.1f} ms as it came"]
        lines += [f"  {'*' if trial == self.used else ' '} {trial}" for trial in self.trials]
        if self.used is None:
            lines.append("  * none of these is faster; the folded tower is used as it is")
        return "\n".join(lines)


@attrs.frozen(kw_only=True)
class OptimizationReport:
    """The report of `optimize`: the forms that were tried for both towers.

    Args:
        image: for its image tower.
        text: for its text tower.
        threads: that torch computed with.
        processor: that it computed on.
    """

    image: TowerReport
    text: TowerReport
    threads: int
    processor: str

    def __str__(self) -> str:
        """Return the report as text, for a person."""
        return f"{self.processor}, {self.threads} threads\n{self.image}\n{self.text}"

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(attrs.asdict(self), indent=2)

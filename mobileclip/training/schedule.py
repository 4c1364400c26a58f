"""Learning rate as a function of the step: linear warm-up, then half a cosine."""

from __future__ import annotations

import math

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class CosineSchedule:
    """Rises linearly to the peak in `warmup_steps`, then falls to the final rate along half a cosine.

    `peak (s + 1) / w` for step `s < w`, then `final + (peak - final) (1 + cos(pi (s - w) / (n - w))) / 2`.

    Args:
        peak: highest learning rate.
        final: learning rate that the cosine ends in.
        warmup_steps: steps to the peak, `w`.
        total_steps: steps of the whole run, `n`.

    Source: MobileCLIP, table 12.
    """

    peak: float = attrs.field(default=1e-3, validator=validators.gt(0))
    final: float = attrs.field(default=1e-6, validator=validators.ge(0))
    warmup_steps: int = attrs.field(default=2000, validator=validators.ge(0))
    total_steps: int = attrs.field(validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below total_steps ({self.total_steps}), or the peak "
                f"is never left"
            )
        if self.final > self.peak:
            raise ValueError(f"final ({self.final}) must not exceed peak ({self.peak})")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the step, counted from 0; past the end it stays at `final`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * done)) / 2

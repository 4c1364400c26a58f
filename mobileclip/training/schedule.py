"""Learning-rate schedules: the learning rate as a function of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import attrs
from attrs import validators

from mobileclip.registry import Registry
from mobileclip.serialization import open_family
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class Schedule(ABC):
    """Base class of schedules: linear warm-up to the peak, `peak (s + 1) / w` for step `s < w`, then its own curve.

    Args:
        total_steps: steps of the whole run, `n`.
        peak: highest learning rate.
        final: learning rate at the end; by default 1e-6, or the peak where that is lower.
        warmup_steps: steps to the peak, `w`, or below 1 a share of the run; by default 2,000, or a tenth of the run
            where that is less.

    Examples:
        >>> class FlatSchedule(Schedule):
        ...     def _after_warmup(self, step: int) -> float:
        ...         return self.peak
        >>> [FlatSchedule(total_steps=40, peak=1.0).learning_rate(step) for step in (0, 1, 3, 39)]
        [0.25, 0.5, 1.0, 1.0]
    """

    total_steps: int = attrs.field(validator=validators.gt(0))
    peak: float = attrs.field(default=1e-3, validator=validators.gt(0))
    final: float = attrs.field(
        default=attrs.Factory(lambda own: default_final(own.peak), takes_self=True), validator=validators.ge(0)
    )
    warmup_steps: int | float = attrs.field(
        default=attrs.Factory(lambda own: default_warmup(own.total_steps), takes_self=True), validator=validators.ge(0)
    )

    def __attrs_post_init__(self) -> None:
        """Check that the numbers make a schedule."""
        if self._warmup >= self.total_steps:
            raise ValueError(
                f"warmup_steps ({self._warmup}) must be below total_steps ({self.total_steps}), or the peak "
                f"is never left"
            )
        if self.final > self.peak:
            raise ValueError(f"final ({self.final}) must not exceed peak ({self.peak})")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the step, counted from 0; past the end it stays at `final`."""
        if step < self._warmup:
            return self.peak * (step + 1) / self._warmup
        return self._after_warmup(step)

    @property
    def _warmup(self) -> int:
        return steps_of(self.warmup_steps, self.total_steps)

    @abstractmethod
    def _after_warmup(self, step: int) -> float:
        """Return the learning rate of a step behind the warm-up."""

    def _cosine(self, step: int, start: int) -> float:
        done = min(1.0, (step - start) / (self.total_steps - start))
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * done)) / 2


def default_warmup(total_steps: int, most: int = 2_000) -> int:
    """Return the usual number of steps to the peak, or a tenth of a short run."""
    return min(most, total_steps // 10)


def steps_of(given: float, total_steps: int) -> int:
    """Return a number of steps, of which one below 1 is a share."""
    return int(given) if given >= 1 else round(given * total_steps)


def default_final(peak: float, most: float = 1e-6) -> float:
    """Return the default final learning rate: `most`, or a lower peak."""
    return min(most, peak)


schedules: Registry[type[Schedule]] = Registry("schedule")
"""Schedules by name; third parties add theirs here or by an entry point in `mobileclip.schedule`."""
open_family(Schedule, schedules)


@schedules.register("cosine")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CosineSchedule(Schedule):
    """Rises linearly to the peak in `warmup_steps`, then falls to the final rate along half a cosine.

    `final + (peak - final) (1 + cos(pi (s - w) / (n - w))) / 2` behind the warm-up.

    Source: MobileCLIP, table 12.

    Examples:
        >>> schedule = CosineSchedule(total_steps=100, peak=1.0, final=0.0, warmup_steps=10)
        >>> [round(schedule.learning_rate(step), 3) for step in (0, 9, 55, 100)]
        [0.1, 1.0, 0.5, 0.0]
    """

    def _after_warmup(self, step: int) -> float:
        return self._cosine(step, self._warmup)


@schedules.register("constant_cosine")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ConstantCosineSchedule(Schedule):
    """Rises linearly to the peak, stays there, then falls along half a cosine: long training.

    A run can branch off: its constant part is the same whatever follows.

    Args:
        constant_steps: steps before the fall begins, or a share of the run, the warm-up among them; by default half of
            it.

    Source: MobileCLIP, table 12, B (LT): 300k constant, 300k cosine.

    Examples:
        >>> schedule = ConstantCosineSchedule(total_steps=100, peak=1.0, final=0.0, constant_steps=50)
        >>> [round(schedule.learning_rate(step), 3) for step in (0, 49, 75, 100)]
        [0.1, 1.0, 0.5, 0.0]
    """

    constant_steps: int | float = attrs.field(default=0.5, validator=validators.ge(0))
    # Behind the field that it follows.
    warmup_steps: int | float = attrs.field(
        default=attrs.Factory(
            lambda own: min(default_warmup(own.total_steps), steps_of(own.constant_steps, own.total_steps)),
            takes_self=True,
        ),
        validator=validators.ge(0),
    )

    def __attrs_post_init__(self) -> None:
        """Check that the numbers make a schedule."""
        Schedule.__attrs_post_init__(self)
        if not self._warmup <= self._constant < self.total_steps:
            raise ValueError(
                f"constant_steps ({self._constant}) must lie between warmup_steps ({self._warmup}) and "
                f"total_steps ({self.total_steps}), the last excluded"
            )

    def _after_warmup(self, step: int) -> float:
        return self.peak if step < self._constant else self._cosine(step, self._constant)

    @property
    def _constant(self) -> int:
        return steps_of(self.constant_steps, self.total_steps)

"""Defaults of training flags that depend on other flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs

from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.losses import LossSpec, ReinforcedLossSpec
from mobileclip.training import ConstantCosineSchedule, Schedule, TrainingSpec
from mobileclip.training.schedule import default_final, default_warmup

PipelineType = TypeVar("PipelineType", bound=PipelineSpec)


class Given:
    """The flags of a command line and what follows each, in the spelling of the help."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._values: dict[str, list[str]] = {}
        values: list[str] = []
        for argument in arguments:
            if argument.startswith("--"):
                flag, equals, value = argument.partition("=")
                values = [value] if equals else []
                self._values[flag.replace("_", "-")] = values
            else:
                values.append(argument)

    def has(self, flag: str) -> bool:
        """Return whether a flag is given."""
        return flag in self._values

    def numbers(self, flag: str, *, unless: str = "") -> list[float]:
        """Return a flag's numbers; none where it is not given, another one is too, or they are no numbers.

        Args:
            flag: with its dashes.
            unless: a flag that says itself what would follow.
        """
        if unless in self._values:
            return []
        try:
            return [float(value) for value in self._values.get(flag, [])]
        except ValueError:
            return []  # the parser says what is wrong


def following_training(training: TrainingSpec, given: Given) -> TrainingSpec:
    """Return the defaults of how a run trains as they follow the flags that are given."""
    try:
        return attrs.evolve(training, schedule=_schedule(training.schedule, given), loss=_loss(training.loss, given))
    except ValueError:
        return training  # what was given is wrong in itself, which the parser says


def following_pipeline(pipeline: PipelineType, given: Given) -> PipelineType:
    """Return the defaults of how data is read as they follow: images are augmented at the size they are read at."""
    flag = "--pipeline.image.size"
    for size in given.numbers(flag, unless="--pipeline.augmentation.size"):
        if isinstance(pipeline, PipelineSpec) and pipeline.augmentation is not None and size >= 1:
            image = attrs.evolve(pipeline.image, size=int(size))
            augmentation = attrs.evolve(pipeline.augmentation, size=int(size))
            return attrs.evolve(pipeline, image=image, augmentation=augmentation)
    return pipeline


def _schedule(schedule: Schedule, given: Given) -> Schedule:
    prefix = "--training.schedule"
    changes: dict[str, Any] = {}
    for peak in given.numbers(f"{prefix}.peak", unless=f"{prefix}.final"):
        if peak > 0:
            changes |= {"peak": peak, "final": default_final(peak, schedule.final)}
    for total in map(int, given.numbers(f"{prefix}.total-steps")):
        if total < 1:
            continue
        warmup = schedule.warmup_steps
        if not given.numbers(f"{prefix}.warmup-steps"):
            warmup = default_warmup(total, schedule.warmup_steps)
        changes |= {"total_steps": total, "warmup_steps": min(warmup, total - 1)}
        if isinstance(schedule, ConstantCosineSchedule) and not given.numbers(f"{prefix}.constant-steps"):
            share = schedule.constant_steps / schedule.total_steps
            changes["constant_steps"] = max(int(changes["warmup_steps"]), min(round(share * total), total - 1))
    return attrs.evolve(schedule, **changes)


def _loss(loss: LossSpec, given: Given) -> LossSpec:
    if not isinstance(loss, ReinforcedLossSpec):
        return loss
    dims, scales = "--training.loss.teacher-dims", "--training.loss.teacher-logit-scales"
    if (new := given.numbers(dims, unless=scales)) and len(set(loss.teacher_logit_scales)) == 1:
        own = loss.teacher_logit_scales[:1]
        loss = attrs.evolve(loss, teacher_dims=tuple(map(int, new)), teacher_logit_scales=own * len(new))
    if (new := given.numbers(scales, unless=dims)) and len(set(loss.teacher_dims)) == 1:
        loss = attrs.evolve(loss, teacher_logit_scales=tuple(new), teacher_dims=loss.teacher_dims[:1] * len(new))
    weights = {"contrastive_weight": loss.contrastive_weight, "distill_weight": loss.distill_weight}
    for name, other in (tuple(weights), tuple(weights)[::-1]):
        flag, other_flag = (f"--training.loss.{one.replace('_', '-')}" for one in (name, other))
        if given.numbers(flag, unless=other_flag) == [0.0] and weights[other] == 0:
            weights |= {other: 1.0, name: 0.0}
            loss = attrs.evolve(
                loss, contrastive_weight=weights["contrastive_weight"], distill_weight=weights["distill_weight"]
            )
    return loss

"""How well models do the tasks of a run; who measures it is handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from mobileclip.encoders import DualEncoder
from mobileclip.training.finetuning.tasks import Task


@attrs.frozen(kw_only=True)
class Score:
    """The accuracy of a model on one task.

    Args:
        task: its name.
        metric: `top-1`, zero-shot, or `R@1`, the mean of both directions of retrieval.
        value: in per cent.
        num_images: pictures that it was tested on.
        num_skipped: pictures, or parts of the data, that could not be used.
        hits: how right the model was, from 0 to 1, by picture; their mean is the value.
    """

    task: str
    metric: str
    value: float
    num_images: int
    num_skipped: int = 0
    hits: tuple[float, ...] = ()


Measure: TypeAlias = Callable[[DualEncoder, Task, tuple[str, ...], tuple[str, ...]], Score]
"""From a model, a task, templates, and classes to choose from beside those of the pictures, to the score."""


@attrs.frozen(kw_only=True)
class Scores:
    """The accuracy of one interpolated model on the new task and on the old ones.

    Args:
        alpha: the model: 0 the original, 1 the fine-tuned one, between them an interpolation.
        new: the new task.
        old: the old ones.
    """

    alpha: float
    new: Score
    old: tuple[Score, ...]

    @property
    def mean_old(self) -> float:
        """Mean over the old tasks."""
        return sum(score.value for score in self.old) / len(self.old)


@attrs.frozen(kw_only=True)
class Results:
    """The results of a fine-tuning run for every alpha, with its training time.

    Args:
        rows: of every alpha.
        seconds: what training took; of this run alone where it resumed.
    """

    rows: tuple[Scores, ...]
    seconds: float

    @property
    def before(self) -> Scores:
        """Scores of the original model."""
        return self.rows[0]

    @property
    def after(self) -> Scores:
        """Scores of the fine-tuned model."""
        return self.rows[-1]

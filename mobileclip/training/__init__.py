"""Training: the spec of a run, its loop, and what the loop is made of."""

from mobileclip.training.ema import MovingAverage
from mobileclip.training.loop import BatchSource, TrainingResult, train
from mobileclip.training.metrics import MetricLog, read_metrics
from mobileclip.training.optimizer import AdamWSpec, decay_groups
from mobileclip.training.plots import plot_curves
from mobileclip.training.schedule import CosineSchedule
from mobileclip.training.spec import TrainingSpec

__all__ = [
    "AdamWSpec",
    "BatchSource",
    "CosineSchedule",
    "MetricLog",
    "MovingAverage",
    "TrainingResult",
    "TrainingSpec",
    "decay_groups",
    "plot_curves",
    "read_metrics",
    "train",
]

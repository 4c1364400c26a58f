"""Training: the spec of a run, the training loop, optimisers, schedules and processes.

This subpackage contains the training loop and resumable checkpoints. `mobileclip.losses` contains the losses, and
`mobileclip.recipes` contains the commands.
"""

from mobileclip.training.distributed import World, process_group
from mobileclip.training.ema import MovingAverage
from mobileclip.training.finetuning.tasks import LabelledContrastiveSpec as LabelledContrastiveSpec  # registered
from mobileclip.training.loop import Evaluate, TrainingResult, train
from mobileclip.training.objectives import (
    CaptionObjective,
    ClassificationObjective,
    CrossEntropySpec,
    ImageTextObjective,
    LossScale,
    Objective,
    TextDistillationObjective,
    build_objective,
)
from mobileclip.training.optimizer import (
    AdamWSpec,
    LayerDecayAdamWSpec as LayerDecayAdamWSpec,  # registered
    OptimizerSpec,
    decay_groups,
    optimizers,
    set_learning_rate,
)
from mobileclip.training.records import MetricLog, last_metrics, plot_curves, read_metrics
from mobileclip.training.run import RunSpec, follow_card, run, without_teachers
from mobileclip.training.selection import (
    Learnability as Learnability,
    PairLosses as PairLosses,
    SelectionSpec,
    choose_pairs as choose_pairs,
)
from mobileclip.training.spec import (
    ConstantCosineSchedule,
    CosineSchedule,
    DataSpec,
    Memory,
    Schedule,
    StudentSpec,
    TrainingSpec,
    pipelines,
    schedules,
    students,
)

__all__ = [
    "AdamWSpec",
    "CaptionObjective",
    "ClassificationObjective",
    "ConstantCosineSchedule",
    "CosineSchedule",
    "CrossEntropySpec",
    "DataSpec",
    "Evaluate",
    "ImageTextObjective",
    "LossScale",
    "Memory",
    "MetricLog",
    "MovingAverage",
    "Objective",
    "OptimizerSpec",
    "RunSpec",
    "Schedule",
    "SelectionSpec",
    "StudentSpec",
    "TextDistillationObjective",
    "TrainingResult",
    "TrainingSpec",
    "World",
    "build_objective",
    "decay_groups",
    "follow_card",
    "last_metrics",
    "optimizers",
    "pipelines",
    "plot_curves",
    "process_group",
    "read_metrics",
    "run",
    "schedules",
    "set_learning_rate",
    "students",
    "train",
    "without_teachers",
]

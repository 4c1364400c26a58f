"""Objectives: the loss of a model on a batch, in micro-batches that fit into memory.

The formulas are those of `losses`; what is done with the gradients does not belong here.
"""

from mobileclip.training.objectives.captions import CaptionObjective as CaptionObjective
from mobileclip.training.objectives.classification import (
    ClassificationObjective as ClassificationObjective,
    CrossEntropySpec as CrossEntropySpec,
)
from mobileclip.training.objectives.objective import (
    ImageTextObjective as ImageTextObjective,
    Objective as Objective,
    build_objective as build_objective,
)
from mobileclip.training.objectives.texts import TextDistillationObjective as TextDistillationObjective

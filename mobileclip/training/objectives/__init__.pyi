from .captions import CaptionObjective as CaptionObjective
from .classification import ClassificationObjective as ClassificationObjective, CrossEntropySpec as CrossEntropySpec
from .objective import (
    ImageTextObjective as ImageTextObjective,
    Objective as Objective,
    build_objective as build_objective,
)
from .texts import TextDistillationObjective as TextDistillationObjective

from .classification import ClassificationObjective as ClassificationObjective, CrossEntropySpec as CrossEntropySpec
from .objective import (
    ImageTextObjective as ImageTextObjective,
    Objective as Objective,
    build_objective as build_objective,
)
from .selection import (
    Learnability as Learnability,
    PairLosses as PairLosses,
    SelectionSpec as SelectionSpec,
    choose_pairs as choose_pairs,
    evaluating as evaluating,
)
from .texts import TextDistillationObjective as TextDistillationObjective

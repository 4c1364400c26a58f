"""The steps of the study of learning efficiency: teachers, stored views, trainings, curves, report."""

from examples.learning_efficiency.run import run
from examples.learning_efficiency.spec import EfficiencySpec

__all__ = ["EfficiencySpec", "run"]

"""The steps of the comparison of learning efficiency: roles of the pictures, teachers, trainings, curves, report."""

from examples.learning_efficiency.run import run
from examples.learning_efficiency.spec import EfficiencySpec

__all__ = ["EfficiencySpec", "run"]

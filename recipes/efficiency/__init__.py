"""The steps of the comparison of learning efficiency: roles of the pictures, teachers, trainings, curves, report."""

from .run import run
from .spec import EfficiencySpec

__all__ = ["EfficiencySpec", "run"]

"""The steps of the quickstart: data, teachers, reinforcement, training, evaluation, report."""

from examples.quickstart.run import run
from examples.quickstart.spec import QuickstartSpec

__all__ = ["QuickstartSpec", "run"]

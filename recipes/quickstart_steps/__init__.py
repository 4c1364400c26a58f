"""The steps of the quickstart: data, teachers, reinforcement, training, evaluation, report."""

from .run import run
from .spec import QuickstartSpec

__all__ = ["QuickstartSpec", "run"]

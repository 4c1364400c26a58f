"""A model in the form that answers soonest on the machine at hand, measured and checked there."""

from mobileclip.inference.forms import Engine, Form, OptimizedTower
from mobileclip.inference.optimizing import OptimizedDualEncoder, optimize, optimize_tower, processor
from mobileclip.inference.programs import Precision
from mobileclip.inference.report import OptimizationReport, TowerReport, Trial

__all__ = [
    "Engine",
    "Form",
    "OptimizationReport",
    "OptimizedDualEncoder",
    "OptimizedTower",
    "Precision",
    "TowerReport",
    "Trial",
    "optimize",
    "optimize_tower",
    "processor",
]

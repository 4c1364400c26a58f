"""A model in the form that answers soonest on the machine at hand, measured and checked there."""

from mobileclip.inference.forms import Form, OptimizedTower, Precision
from mobileclip.inference.optimizing import OptimizedDualEncoder, optimize, optimize_tower, processor
from mobileclip.inference.report import OptimizationReport, TowerReport, Trial

__all__ = [
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

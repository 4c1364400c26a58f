"""A model ready to encode, and the form of it that answers soonest on the machine at hand, measured there.

What uses a model as it is belongs here; what trains, evaluates or exports one does not.
"""

from mobileclip.inference.forms import by_length, prepared, prepared_tower
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.optimization.optimizing import (
    OptimizedDualEncoder,
    optimize,
    optimize_images,
    optimize_tower,
    processor,
)
from mobileclip.inference.optimization.report import OptimizationReport, TowerReport, Trial
from mobileclip.inference.optimization.towers import Engine, Form, OptimizedTower

__all__ = [
    "Engine",
    "Form",
    "ModelIdentity",
    "OptimizationReport",
    "OptimizedDualEncoder",
    "OptimizedTower",
    "TowerReport",
    "Trial",
    "by_length",
    "optimize",
    "optimize_images",
    "optimize_tower",
    "prepared",
    "prepared_tower",
    "processor",
]

"""A model ready to encode, and the form of it that answers soonest on the machine at hand, measured there.

What uses a model as it is belongs here; what trains, evaluates or exports one does not.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [
    "Engine",
    "Form",
    "ModelIdentity",
    "OptimizationReport",
    "OptimizedDualEncoder",
    "OptimizedTower",
    "Pruned",
    "QuantizationReport",
    "QuantizationSpec",
    "TowerReport",
    "Trial",
    "by_length",
    "combine",
    "optimize",
    "optimize_images",
    "optimize_tower",
    "prepared",
    "prepared_tower",
    "processor",
    "prune_vocabulary",
    "space_of",
]

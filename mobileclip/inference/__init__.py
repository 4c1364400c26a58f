"""Loads a model ready to encode, and finds its fastest form on this machine.

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

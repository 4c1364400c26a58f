"""Fine-tuning: what is frozen, learning rates by depth, adapters, and averaging with the original.

What fine-tuning alone needs belongs here; the loop is that of `training`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [
    name
    for name in _names
    if name
    not in {
        "Measure",
        "Results",
        "Score",
        "Scores",
        "Task",
        "TrainingData",
        "label_of",
        "open_task",
        "read_index",
        "split",
        "write_training_data",
    }
]

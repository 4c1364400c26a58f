"""Prepares data before training: reads sources and labelled images, and joins, curates and displays samples.

Each module has one task. The code that a training run uses at every step is in `mobileclip.data`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [
    name
    for name in _names
    if name not in {"ClassData", "LabelParser", "LabelledMaker", "LabelledSample", "open_class_data", "shards_of"}
]

"""Prepares data before a run: sources, joins, curation, viewing, and images of classes.

Each package here has one task; what a training run reads at every step is in `mobileclip.data`.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [
    name
    for name in _names
    if name not in {"ClassData", "LabelParser", "LabelledMaker", "LabelledSample", "open_class_data", "shards_of"}
]

"""Data: text and image input, replayed augmentation, reinforced samples and their shards, and named batches.

What lies between shards and a batch belongs here, in the package of its step; what several need lies beside them.
What prepares data sets offline is in `mobileclip.datasets`; models and losses do not belong here.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_import, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [
    name
    for name in _names
    if name
    not in {
        "Buckets",
        "MAX_LOGGED",
        "MAX_NAMED",
        "Records",
        "attempt",
        "derived_seed",
        "leading_bits",
        "made_or_skip",
        "num_buckets_for",
        "runs",
        "scratch_folder",
        "seeded_rng",
        "shuffled",
    }
]


def __getattr__(name: str) -> Any:
    try:
        return _import(name)
    except AttributeError:
        datasets = import_module("mobileclip.datasets")  # its names work from here, too, through 0.1
        if name not in datasets.__all__:
            raise
        return getattr(datasets, name)

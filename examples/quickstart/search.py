"""The held-out pictures as a collection, to be searched in one's own words."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mobileclip.collections import Collection, IndexOptions, ModelSource

INDEX = "held_out.index"


def index_held_out(output: Path, shards: Sequence[Path], model: Path) -> None:
    """Make the pictures that training never saw ready to be searched: `INDEX` in the folder of the run.

    Args:
        output: folder of the run.
        shards: the pictures.
        model: the student that searches.
    """
    folder = output / INDEX
    # An earlier run's is of its own student.
    shutil.rmtree(folder, ignore_errors=True)
    collection = Collection.create(folder, ModelSource(checkpoint=str(model)))
    collection.add(*shards, options=IndexOptions(show_progress=False))

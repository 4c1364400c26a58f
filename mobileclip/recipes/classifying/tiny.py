"""A small world to try a classifier's recipe in: its model one block deep, and drawn shapes."""

from __future__ import annotations

from pathlib import Path

import attrs

from mobileclip.datasets import find_class_names
from mobileclip.recipes.finetuning.tiny import write_shapes
from mobileclip.recipes.tiny.shapes import OUTLINES
from mobileclip.recipes.training.tiny import BATCH_SIZE, shallow_image, two_steps
from mobileclip.training import RunSpec

NUM_TRAINED = 6
NUM_HELD_OUT = 2


def tiny_run(run: RunSpec, folder: Path) -> RunSpec:
    """Return the run made small: two steps of eight images with a model of full width and one block a stage.

    Args:
        run: the recipe's choices. Weights to start from need the whole model.
        folder: where drawn shapes go, `train` and `val`, once, for a run without data.
    """
    if not run.data.shards:
        for name, count, seed in (("train", NUM_TRAINED, 4), ("val", NUM_HELD_OUT, 5)):
            write_shapes(folder / name, tuple(OUTLINES), count, seed=seed)
        names = find_class_names(folder / "train")
        data = attrs.evolve(run.data, shards=(str(folder / "train"),), num_classes=len(names), class_names=names)
        run = attrs.evolve(run, data=data, model=attrs.evolve(run.model, num_classes=len(names), class_names=names))
    # Their number is not that of all images, which would have to be counted: an epoch is a step.
    data = attrs.evolve(run.data, batch_size=BATCH_SIZE, num_samples=BATCH_SIZE, num_workers=0)
    image = run.model.image if run.initial_weights is not None else shallow_image(run.model.image)
    return attrs.evolve(run, model=attrs.evolve(run.model, image=image), data=data, training=two_steps(run.training))

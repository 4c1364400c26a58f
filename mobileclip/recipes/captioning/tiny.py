"""A small world to try a captioner's recipe in: a narrow model one block deep, and drawn scenes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import attrs

from mobileclip.datasets import RowOptions, as_source, shards_of
from mobileclip.encoders import CoCaSpec, ViTSpec
from mobileclip.recipes.reinforcing.tiny import write_scenes
from mobileclip.recipes.tiny.few_samples import first_samples
from mobileclip.recipes.training.tiny import BATCH_SIZE, two_steps
from mobileclip.training import RunSpec

_WIDTH, _HEADS, _QUERIES = 64, 2, 9


def tiny_run(run: RunSpec, folder: Path, rows: RowOptions) -> RunSpec:
    """Return the run made small: two steps of eight pairs with a narrow model, one block deep.

    Args:
        run: the recipe's choices; of its data, the first samples are taken. Weights to start from need the whole model.
        folder: where copies of samples and drawn scenes go, once.
        rows: how rows of lists and tables are read.

    Raises:
        ValueError: if there is data, and not one of its first samples can be used.
    """
    given, scenes = run.data.shards, folder / "scenes"
    place = first_samples(as_source(given, rows=rows), folder / "samples") if given else write_scenes(scenes)
    data = attrs.evolve(run.data, shards=shards_of((place,)), batch_size=BATCH_SIZE, num_workers=0)
    model = run.model if run.initial_weights is not None else narrow(cast("CoCaSpec", run.model))
    return attrs.evolve(run, model=model, data=data, training=two_steps(run.training))


def narrow(model: CoCaSpec) -> CoCaSpec:
    """Return a captioner with one narrow block of each kind, its inputs as they are."""
    image = model.image
    if isinstance(image, ViTSpec):
        image = attrs.evolve(image, width=_WIDTH, depth=1, num_heads=_HEADS, embedding_dim=_WIDTH)
    width = image.embedding_dim
    return attrs.evolve(
        model,
        image=image,
        text=attrs.evolve(model.text, width=width, depth=1, num_heads=_HEADS, embedding_dim=width),
        decoder_depth=1,
        decoder_heads=_HEADS,
        num_queries=_QUERIES,
        pooler_heads=_HEADS,
    )

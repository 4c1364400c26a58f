"""The small world of `--tiny`: its drawings, models that know them, and what it takes of a person's own data."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from mobileclip.data import find_card, write_card, write_shard
from mobileclip.datasets import as_source
from mobileclip.recipes.tiny import OUTLINES, SHAPES, draw_shape, first_samples, shrink
from mobileclip.training.finetuning.run import FinetuneSpec
from tests.data.made_samples import encoded, make_sample
from tests.data.shards.test_card import CARD
from tests.recipes.choices import run_of

SHEET = Path(__file__).parent / "golden" / "shapes.png"
"""Two of every shape at a tenth of their size: the pages' figures were measured on these drawings."""


def sheet() -> Image.Image:
    """Return what the golden sheet shows; saved there, it is the new one."""
    drawn = [
        draw_shape(shape, np.random.default_rng(seed), 240, 180) for seed, shape in enumerate((*SHAPES, *OUTLINES))
    ]
    return Image.fromarray(np.concatenate([np.asarray(picture.reduce(10)) for picture in drawn], axis=1))


def test_the_shapes_are_those_of_the_golden_sheet():
    assert tuple(OUTLINES) == ("star", "heart", "arrow", "moon", "hexagon", "house", "lightning", "flower")
    with Image.open(SHEET) as golden:
        # Versions of Pillow draw edges a pixel apart.
        np.testing.assert_allclose(np.asarray(sheet(), dtype=int), np.asarray(golden, dtype=int), atol=30)


def test_first_samples_keep_the_card_that_lies_beside_them(tmp_path):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "0.tar", [make_sample(index) for index in range(3)])
    source = as_source(tmp_path / "data" / "0.tar")
    assert find_card(first_samples(source, tmp_path / "without")) is None
    write_card(tmp_path / "data", CARD)
    assert find_card(first_samples(source, tmp_path / "with")) == CARD


def test_every_process_of_a_tiny_run_has_a_shard_and_a_share_of_the_batch(tmp_path, monkeypatch):
    shards = [
        str(write_shard(tmp_path / f"{shard}.tar", [make_sample(4 * shard + index) for index in range(4)]))
        for shard in range(4)
    ]
    run = run_of("train_s2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    data = shrink(attrs.evolve(run, data=attrs.evolve(run.data, shards=tuple(shards)))).data
    assert (data.shards, data.batch_size, data.num_samples) == (tuple(shards[:3]), 6, 12)


def test_a_tiny_fine_tuning_starts_from_the_model_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(encoded(8, 8))
    named = FinetuneSpec(checkpoint="my.pt", data="data", retention_tasks=("data",))
    assert shrink(named).checkpoint == "my.pt"

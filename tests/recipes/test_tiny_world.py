"""The small world of `--tiny`: its drawings, models that know them, and what it takes of a person's own data."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from mobileclip.data import find_card, write_card, write_shards
from mobileclip.datasets import as_source
from mobileclip.evaluation import read_results
from mobileclip.recipes.tiny import OUTLINES, SHAPES, draw_shape, first_samples, shrink
from mobileclip.training.finetuning.run import FinetuneSpec
from tests.data.made_samples import encoded, make_sample
from tests.data.shards.test_card import CARD
from tests.errors import fails
from tests.recipes.choices import run_of
from tests.recipes.running import run_named

SHEET = Path(__file__).parent / "golden" / "shapes.png"
"""Two of every shape at a tenth of their size: the pages' figures were measured on these drawings."""


def test_the_shapes_are_those_of_the_golden_sheet():
    assert tuple(OUTLINES) == ("star", "heart", "arrow", "moon", "hexagon", "house", "lightning", "flower")
    shapes = enumerate((*SHAPES, *OUTLINES))
    drawn = [draw_shape(shape, np.random.default_rng(seed), 240, 180).reduce(10) for seed, shape in shapes]
    sheet = np.concatenate([np.asarray(picture, dtype=int) for picture in drawn], axis=1)
    with Image.open(SHEET) as golden:
        # Versions of Pillow draw edges a pixel apart.
        np.testing.assert_allclose(sheet, np.asarray(golden, dtype=int), atol=30)


def test_first_samples_keep_the_card_that_lies_beside_them(tmp_path):
    write_shards(tmp_path / "data", [make_sample(index) for index in range(3)])
    source = as_source(tmp_path / "data" / "00000000.tar")
    assert find_card(first_samples(source, tmp_path / "without")) is None
    write_card(tmp_path / "data", CARD)
    assert find_card(first_samples(source, tmp_path / "with")) == CARD


def test_every_process_of_a_tiny_run_has_a_shard_and_a_share_of_the_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    write_shards(tmp_path, [make_sample(index) for index in range(16)], samples_per_shard=4)
    shards, run = tuple(map(str, sorted(tmp_path.glob("*.tar")))), run_of("train_s2")
    data = shrink(attrs.evolve(run, data=attrs.evolve(run.data, shards=shards))).data
    assert (data.shards, data.batch_size, data.num_samples) == (shards[:3], 6, 12)


def test_a_tiny_fine_tuning_starts_from_the_model_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(encoded(8, 8))
    named = FinetuneSpec(checkpoint="my.pt", data="data", retention_tasks=("data",))
    assert shrink(named).checkpoint == "my.pt"


def test_an_evaluation_names_data_that_is_not_there(tmp_path):
    with fails(SystemExit, "vtab/dtd", "wds_vtab-dtd_test"):
        run_named("evaluate", "mobileclip_s0", "--data", tmp_path, "--datasets", "vtab/dtd")


@pytest.mark.slow
def test_a_tiny_evaluation_is_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_named("evaluate", "--tiny", "--report", "--compare-published", "mobileclip_s1")
    (path,) = (tmp_path / "outputs" / "evaluate-tiny").glob("icons-*/results.jsonl")
    ((name, result),) = read_results(path).items()
    assert (name, result.num_images) == ("scenes", 48)
    assert f"{100 * result.main_metric:.1f}" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "evaluate-tiny" / "report.html").stat().st_size > 50_000
    before = path.read_bytes()
    run_named("evaluate", "--tiny")
    assert path.read_bytes() == before

"""The comparison of data workers: both sides make the same of the same samples, or nothing is timed."""

from __future__ import annotations

import importlib.util
import io
import re

import attrs
import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from benchmarks.data import (
    DataBenchSpec,
    compare,
    mobileclip_batches,
    photo,
    pixel_difference,
    release_batches,
    run,
    samples,
)
from mobileclip.data import write_shard
from mobileclip.extras import install_library

SMALL = DataBenchSpec(num_samples=6, rounds=2, batch_size=4, size=64, num_augmentations=4, dim=24, photo_side=100)
# webdataset leaves closing its files to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_photos_are_all_different_and_as_large_as_asked_for():
    many = [photo(number, 120, quality=90, seed=0) for number in range(8)]
    assert many == [photo(number, 120, quality=90, seed=0) for number in range(8)]
    assert len(set(many)) == 8
    assert photo(0, 120, quality=90, seed=1) != many[0]
    for encoded in many:
        with Image.open(io.BytesIO(encoded)) as image:
            assert max(image.size) == 120
            pixels = np.asarray(image).astype(float)
        assert pixels.std() > 15
        assert np.abs(np.diff(pixels, axis=1)).mean() > 2  # grain and all
        assert 0.15 < len(encoded) / (pixels.size / 3) < 1.0


@pytest.mark.parametrize("layout", ["npz", "pth.gz", "compact"])
def test_pixels_are_equal_to_the_bit(tmp_path, layout):
    result = compare(SMALL, tmp_path, layout, "exact")
    assert result.mean_error == 0
    assert result.psnr == float("inf")
    assert min(result.mobileclip, result.release, result.ratio) > 0
    assert result.ratio_quartiles[0] <= result.ratio <= result.ratio_quartiles[1]


def test_fast_decoding_moves_the_pixels_a_little(tmp_path):
    result = compare(attrs.evolve(SMALL, size=32, large_side=300), tmp_path, "npz", "fast")
    assert 0 < result.mean_error < 3
    assert 30 < result.psnr < 60


def test_sides_that_differ_are_not_timed(tmp_path):
    shard = write_shard(tmp_path / "a.tar", samples(SMALL, 100, 90))
    other = write_shard(tmp_path / "b.tar", samples(attrs.evolve(SMALL, seed=1), 100, 90))
    batches = mobileclip_batches(SMALL, shard, "exact")
    assert pixel_difference(batches(), release_batches(SMALL, shard)(), 0.0) == (0, 0)
    with pytest.raises(ValueError, match="read other samples or captions"):
        pixel_difference(batches(), release_batches(SMALL, other)(), 0.0)
    rounded = write_shard(tmp_path / "c.tar", samples(SMALL, 100, 90), layout="pth.gz")
    with pytest.raises(ValueError, match="read another image_emb"):
        pixel_difference(batches(), release_batches(SMALL, rounded)(), 0.0)


def test_pixels_that_differ_are_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "pixel_difference", lambda *_: (0.001, 0.01))
    with pytest.raises(ValueError, match=r"the pixels differ, by 0\.001 levels"):
        compare(SMALL, tmp_path, "npz", "exact")


def test_a_missing_rival_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else name)
    with pytest.raises(SystemExit, match=rf"torchvision cannot be imported, .*: {re.escape(install_library('test'))}"):
        run(DataBenchSpec(tiny=True))


def test_tiny(capsys):
    results = run(DataBenchSpec(tiny=True))
    assert len(results) == 6
    assert all(result.mean_error == 0 for result in results[:3])
    printed = capsys.readouterr().out
    assert "pth.gz" in printed
    assert "compact" in printed

"""The comparison of data workers: both sides make the same of the same samples, or nothing is timed."""

import io

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
    samples,
)
from mobileclip.data import write_shard

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
def test_pixels_are_equal_to_the_bit(layout):
    (row,) = compare(SMALL, layout, "exact")
    assert row.values["error"].number == 0
    assert "PSNR" not in row.values
    assert min(row.values[name].number for name in ("mobileclip", "release", "ratio")) > 0


def test_fast_decoding_moves_the_pixels_a_little():
    (row,) = compare(attrs.evolve(SMALL, size=32, large_side=300), "npz", "fast")
    assert 0 < row.values["error"].number < 3
    assert 30 < row.values["PSNR"].number < 60


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


def test_pixels_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setattr(data, "pixel_difference", lambda *_: (0.001, 0.01))
    with pytest.raises(ValueError, match=r"the pixels differ, by 0\.001 levels"):
        compare(SMALL, "npz", "exact")

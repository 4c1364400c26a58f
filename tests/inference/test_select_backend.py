"""A form of the model is looked for where there are enough pictures, and gives the same embeddings."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

import mobileclip
from mobileclip.data import load_image
from mobileclip.inference import optimize_tower, optimizing, select_backend
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.forms import MOST_IMAGES_ON_CPU
from tests.collections.pictures import draw


def test_few_pictures_are_encoded_by_the_model_as_it_is(telling_file):
    clip = mobileclip.load(checkpoint=telling_file)
    assert select_backend(clip, (), optimizing.WORTH_TRYING - 1, precision="float32", show_progress=False) is clip


@pytest.mark.parametrize("num_readable", [0, 3])
def test_many_are_encoded_by_another_form_to_the_same_embeddings(telling_file, tmp_path, num_readable):
    clip = mobileclip.load(checkpoint=telling_file)
    paths = [draw(tmp_path / "photos" / f"{number}.png", number) for number in range(6)]
    (tmp_path / "torn.png").write_bytes(b"torn")
    files = [tmp_path / "torn.png", *paths[:num_readable]]
    fast = select_backend(clip, files, optimizing.WORTH_TRYING, precision="float32", show_progress=False)
    assert fast.model is not clip.model
    np.testing.assert_allclose(fast.encode_image(paths), clip.encode_image(paths), atol=1e-4)


EAGER, BOTH = ("eager",), ("eager", "openvino")


@pytest.mark.parametrize(
    ("num_pictures", "precision", "engines", "files"),
    [
        (optimizing.WORTH_TRYING, "int8", EAGER, {"given": 20, "drawn": 16, "calibrated": None}),
        (optimizing.WORTH_COMPILING - 1, "float32", EAGER, {"given": 20, "drawn": 16, "calibrated": None}),
        (optimizing.WORTH_COMPILING, "float32", BOTH, {"given": 20, "drawn": 16, "calibrated": None}),
        (optimizing.WORTH_COMPILING, "int8", BOTH, {"given": 15, "drawn": 15, "calibrated": None}),
        (optimizing.WORTH_COMPILING, "int8", BOTH, {"given": 16, "drawn": 16, "calibrated": 16}),
        (optimizing.WORTH_COMPILING, "int8", BOTH, {"given": 70, "drawn": 64, "calibrated": 64}),
    ],
)
def test_programs_are_worth_it_for_many_pictures_and_int8_for_enough(
    num_pictures, precision, engines, files, drawn_files
):
    clip, paths, drawn, tried = drawn_files(files["given"])
    select_backend(clip, drawn, num_pictures, precision=precision, show_progress=False)
    ((images, calibration, options),) = tried
    assert options == {"precision": precision, "engines": engines, "rounds": 2, "show_progress": False}
    expected = torch.stack([clip.transform(load_image(path)) for path in paths])
    torch.testing.assert_close(images, expected[:MOST_IMAGES_ON_CPU])
    assert len(list(drawn)) == files["given"] - files["drawn"]
    assert (calibration is None) == (files["calibrated"] is None)
    if calibration is not None:
        torch.testing.assert_close(calibration.ranges, expected[: files["calibrated"] : 2])
        torch.testing.assert_close(calibration.measured, expected[1 : files["calibrated"] : 2])


@pytest.fixture
def drawn_files(telling_file, tmp_path, monkeypatch):
    """A function to a model, so many files, an iterator of them, and what forms are tried with."""
    tried = []

    def watched(tower, images, *, calibration, **options):
        tried.append((images, calibration, options))
        return optimize_tower(tower, images, engines=EAGER, rounds=1)

    monkeypatch.setattr(optimizing, "optimize_tower", watched)

    def drawn(num_files):
        paths = [draw(tmp_path / "photos" / f"{number % 8}.png", number % 8) for number in range(num_files)]
        return mobileclip.load(checkpoint=telling_file), paths, iter(paths), tried

    return drawn


@pytest.mark.slow
def test_int8_takes_its_ranges_from_the_pictures(telling_file, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizing, "WORTH_COMPILING", 1)
    watched = Mock(wraps=optimize_tower)
    monkeypatch.setattr(optimizing, "optimize_tower", watched)
    clip = mobileclip.load(checkpoint=telling_file)
    paths = [draw(tmp_path / "photos" / f"{number:02d}.png", number) for number in range(20)]
    fast = select_backend(clip, paths, optimizing.WORTH_TRYING, precision="int8", show_progress=False)
    images = torch.stack([clip.transform(load_image(path)) for path in paths])
    torch.testing.assert_close(watched.call_args.kwargs["calibration"].ranges, images[::2])
    torch.testing.assert_close(watched.call_args.kwargs["calibration"].measured, images[1::2])
    cosines = (fast.encode_image(paths) * clip.encode_image(paths)).sum(dim=1)
    assert cosines.min() > LEAST_COSINE["int8"]

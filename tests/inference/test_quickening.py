"""A form of the model is looked for where there are enough pictures, and gives the same embeddings."""

import numpy as np
import pytest
import torch

import mobileclip
from mobileclip.data import load_image
from mobileclip.inference import optimize_images, quickening
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.quickening import quickened
from tests.collections.pictures import draw


def test_few_pictures_are_encoded_by_the_model_as_it_is(telling_file):
    clip = mobileclip.load(checkpoint=telling_file)
    assert quickened(clip, (), quickening.WORTH_TRYING - 1, precision="float32", show_progress=False) is clip


@pytest.mark.parametrize("num_readable", [0, 3])
def test_many_are_encoded_by_another_form_to_the_same_embeddings(telling_file, tmp_path, num_readable):
    clip = mobileclip.load(checkpoint=telling_file)
    paths = [draw(tmp_path / "photos" / f"{number}.png", number) for number in range(6)]
    (tmp_path / "torn.png").write_bytes(b"torn")
    files = [tmp_path / "torn.png", *paths[:num_readable]]
    fast = quickened(clip, files, quickening.WORTH_TRYING, precision="float32", show_progress=False)
    assert fast.model is not clip.model
    np.testing.assert_allclose(fast.encode_image(paths), clip.encode_image(paths), atol=1e-4)


@pytest.mark.slow
def test_int8_takes_its_ranges_from_the_pictures(telling_file, tmp_path, monkeypatch):
    monkeypatch.setattr(quickening, "WORTH_COMPILING", 1)
    given = []

    def watched(model, images, *, calibration, **options):
        given.append(calibration)
        return optimize_images(model, images, calibration=calibration, **options)

    monkeypatch.setattr(quickening, "optimize_images", watched)
    clip = mobileclip.load(checkpoint=telling_file)
    paths = [draw(tmp_path / "photos" / f"{number:02d}.png", number) for number in range(20)]
    fast = quickened(clip, paths, quickening.WORTH_TRYING, precision="int8", show_progress=False)
    torch.testing.assert_close(given[0], torch.stack([clip.transform(load_image(path)) for path in paths]))
    cosines = (fast.encode_image(paths) * clip.encode_image(paths)).sum(dim=1)
    assert cosines.min() > LEAST_COSINE["int8"]

"""What a model takes in: the published contract, and the bounds of others."""

import hashlib

import pytest

from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, tokenizer_sha256
from tests.errors import fails


def test_pixels_of_openai_s_models_are_those_that_open_clip_knows():
    import open_clip

    assert OPENAI_MEAN == open_clip.OPENAI_DATASET_MEAN
    assert OPENAI_STD == open_clip.OPENAI_DATASET_STD


@pytest.mark.parametrize(("field", "least", "most"), [("mean", -1e3, 1e3), ("std", 1e-6, 1e3)])
def test_pixels_are_of_a_range(field, least, most):
    assert getattr(ImageInput(size=8, **{field: (least, 1.0, most)}), field) == (least, 1.0, most)
    for outside in (least - 1e-7, most + 1.0):
        with fails(ValueError, f"'{field}'"):
            ImageInput(size=8, **{field: (1.0, outside, 1.0)})


def test_a_tokenizer_s_name_is_what_sha256sum_says_of_its_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": "Käfer"}', encoding="utf-8")
    assert tokenizer_sha256(path.read_text(encoding="utf-8")) == hashlib.sha256(path.read_bytes()).hexdigest()

"""int8 of full-size models gives the numbers that are stored."""

import json

import pytest

from tests.inference.quantization.golden import CASES, STORED, emulated


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tower"), CASES)
def test_int8_of_full_size_models_is_what_it_was(name, tower):
    stored, found = json.loads(STORED.read_text(encoding="utf-8"))[f"{name}, {tower}"], emulated(name, tower)
    assert found["values"] == pytest.approx(stored["values"], abs=1e-7)
    assert found["cosine"] == pytest.approx(stored["cosine"], abs=1e-7)
    assert 0.9 < found["cosine"] < 0.99999

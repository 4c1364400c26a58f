"""What the recipes choose is what was recorded."""

import json

import pytest

from tests.recipes.choices import CHOICES, FOLDER


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_the_golden_ones(name):
    """`python -m tests.recipes.choices` writes them all."""
    assert json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) == CHOICES[name]()

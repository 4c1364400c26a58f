"""What the recipes choose is what was recorded."""

import importlib
import json
import re

import pytest

from mobileclip.recipes import header_of, recipe_files
from tests.recipes.choices import CHOICES, FOLDER, OF_OTHER_MODELS, TRAINING


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_the_golden_ones(name):
    """`python -m tests.recipes.choices` writes them all."""
    assert json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) == CHOICES[name]()


@pytest.mark.parametrize("name", [*TRAINING, *OF_OTHER_MODELS, "finetune_coca"])
def test_a_run_sees_as_many_samples_as_its_header_states(name):
    module = importlib.import_module(f"recipes.{name}")
    stated, unit = re.search(
        r"(\d+) (million|billion) (?:samples|images|pairs)", header_of(recipe_files()[name]).entries["Time"]
    ).groups()
    for recipe in getattr(module, "ROWS", {"": getattr(module, name, None)}).values():
        run = recipe()
        seen = run.data.batch_size * run.training.total_steps
        assert round(seen / {"million": 1e6, "billion": 1e9}[unit]) == int(stated)

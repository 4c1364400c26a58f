"""What the recipes choose, as golden text: a changed number shows in review.

`python -m tests.recipes.choices` writes it anew.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import attrs

from mobileclip.losses import ContrastiveLossSpec
from mobileclip.serialization import to_json
from mobileclip.training.finetuning import labelled_contrastive

FOLDER = Path(__file__).parent / "golden"
OF_OTHER_MODELS = ("train_coca", "train_imagenet_mci")
ALL = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.py"))
TRAINING = [name for name in ALL if name.startswith("train_") and name not in OF_OTHER_MODELS]
ROWS = "train_vit_b16_12m"
WITH_ROWS = {name for name in TRAINING if hasattr(importlib.import_module(f"recipes.{name}"), "ROWS")}
REINFORCING = [name for name in ALL if name.startswith("reinforce_")]


def runs_of(name: str) -> dict[str, Any]:
    """Return the choices of a recipe by its name, or those of each row by recipe and row."""
    module = importlib.import_module(f"recipes.{name}")
    rows = getattr(module, "ROWS", None)
    return {name: module.RUN} if rows is None else {f"{name} {row}": run for row, run in rows.items()}


def run_of(name: str) -> Any:
    """Return the choices of a recipe, or of its first row, or of the one behind its name."""
    recipe, _, row = name.partition(" ")
    found = runs_of(recipe)
    return found[name] if row else next(iter(found.values()))


def _training() -> object:
    """Return the choices of every run: of a recipe's further rows, those that are others than its first row's."""
    chosen, firsts = {}, {}
    for name, recipe in _all_of(*TRAINING).items():
        values = leaves(recipe)
        first = firsts.setdefault(name.partition(" ")[0], values)
        changed = {place: values.get(place, "left out") for place in first.keys() | values.keys()}
        changed = {place: value for place, value in sorted(changed.items()) if first.get(place, ...) != value}
        chosen[name] = recipe if first is values else changed
    return chosen


def leaves(value: object, place: str = "") -> dict[str, object]:
    """Return the leaves of JSON by their places, such as `training.schedule.peak`."""
    if not isinstance(value, dict):
        return {place: value}
    return {
        name: leaf for key, item in value.items() for name, leaf in leaves(item, f"{place}.{key}".lstrip(".")).items()
    }


def _finetune() -> object:
    spec = run_of("finetune")
    changed = attrs.evolve(spec, rate_decay=0.9, lora_rank=8)
    return {
        "recipe": _plain(spec),
        "training": _plain(spec.training(ContrastiveLossSpec(), num_samples=6400)),
        "labelled training": _plain(changed.training(labelled_contrastive(10), num_samples=6400)),
        "adapted": _plain(changed.finetuning),
    }


def _all_of(*recipes: str) -> dict[str, object]:
    return {name: _plain(run) for recipe in recipes for name, run in runs_of(recipe).items()}


def _by_row(*recipes: str) -> object:
    return {name.split()[-1]: choices for name, choices in _all_of(*recipes).items()}


def _plain(spec: object) -> object:
    return json.loads(to_json(spec))


CHOICES = {
    "training": _training,
    "classifying": lambda: _by_row("train_imagenet_mci"),
    "reinforcing": lambda: _all_of(*REINFORCING),
    "finetune": _finetune,
    "evaluate": lambda: _plain(run_of("evaluate")),
    "distilling": lambda: _by_row("distil_text", "distil_text_s0"),
    "captioning": lambda: _all_of("train_coca", "finetune_coca"),
}


if __name__ == "__main__":
    for name, choices in CHOICES.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(choices(), indent=1) + "\n", encoding="utf-8")

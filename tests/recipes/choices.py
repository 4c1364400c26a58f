"""What the recipes choose, as golden text: a changed number shows in review.

`python -m tests.recipes.choices` writes it anew.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import attrs

from examples.quickstart.__main__ import quickstart
from examples.quickstart.spec import student
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.serialization import to_json
from mobileclip.training import RunSpec
from mobileclip.training.finetuning import labelled_contrastive
from recipes import distil_text_s0 as shortening, finetune_coca, train_coca, train_imagenet_mci as classifying
from recipes.distil_text import distil_text
from recipes.evaluate import evaluate
from recipes.finetune import finetune
from recipes.reinforce_datacompdr1b import reinforce_datacompdr1b
from recipes.reinforce_datacompdr12m import reinforce_datacompdr12m
from recipes.reinforce_dfndr2b import reinforce_dfndr2b

FOLDER = Path(__file__).parent / "golden"
OF_OTHER_MODELS = ("train_coca", "train_imagenet_mci")
TRAINING = sorted(
    path.stem for path in (Path(__file__).parents[2] / "recipes").glob("train_*.py") if path.stem not in OF_OTHER_MODELS
)
ROWS = "train_vit_b16_12m"
WITH_ROWS = {name for name in TRAINING if hasattr(importlib.import_module(f"recipes.{name}"), "ROWS")}
REINFORCING = {
    "DataCompDR-12M": reinforce_datacompdr12m,
    "DataCompDR-1B": reinforce_datacompdr1b,
    "DFNDR-2B": reinforce_dfndr2b,
}


def training_recipes() -> dict[str, Callable[[], RunSpec]]:
    """Return every published run by name, those of a recipe with rows under recipe and row."""
    found: dict[str, Callable[[], RunSpec]] = {}
    for name in TRAINING:
        module = importlib.import_module(f"recipes.{name}")
        if name in WITH_ROWS:
            found |= {f"{name} {row}": recipe for row, recipe in module.ROWS.items()}
        else:
            found[name] = getattr(module, name)
    return found


def _training() -> object:
    """Return the choices of every run: of a recipe's further rows, those that are others than its first row's."""
    chosen, firsts = {}, {}
    for name, recipe in training_recipes().items():
        values = leaves(_plain(recipe()))
        first = firsts.setdefault(name.partition(" ")[0], values)
        chosen[name] = _plain(recipe()) if first is values else {
            place: values.get(place, "left out")
            for place in sorted(first.keys() | values.keys())
            if place not in first or place not in values or first[place] != values[place]
        }  # fmt: skip
    return chosen


def leaves(value: object, place: str = "") -> dict[str, object]:
    """Return the leaves of JSON by their places, such as `training.schedule.peak`."""
    if not isinstance(value, dict):
        return {place: value}
    return {
        name: leaf for key, item in value.items() for name, leaf in leaves(item, f"{place}.{key}".lstrip(".")).items()
    }


def _classifying() -> object:
    return {row: _plain(recipe()) for row, recipe in classifying.ROWS.items()}


def _reinforcing() -> object:
    return {name: _plain(recipe("source/0.tar", "output")) for name, recipe in REINFORCING.items()}


def _finetune() -> object:
    spec = attrs.evolve(finetune(), rate_decay=0.9, lora_rank=8)
    return {
        "recipe": _plain(finetune()),
        "training": _plain(finetune().training(ContrastiveLossSpec(), num_samples=6400)),
        "labelled training": _plain(spec.training(labelled_contrastive(10), num_samples=6400)),
        "adapted": _plain(spec.finetuning),
    }


def _distilling() -> object:
    return {"distil_text": _plain(distil_text()), **{row: _plain(one()) for row, one in shortening.ROWS.items()}}


def _captioning() -> object:
    return {
        f"{module.__name__.rpartition('.')[2]} {row}": _plain(one())
        for module in (train_coca, finetune_coca)
        for row, one in module.ROWS.items()
    }


def _evaluate() -> object:
    return _plain(evaluate())


def _quickstart() -> object:
    shards = (Path("a.tar"),)
    specs = {"quick": quickstart(), "full": attrs.evolve(quickstart(), full=True).resolved}
    parts = {
        name: (
            spec,
            spec.data,
            spec.teachers,
            spec.reinforcement(shards),
            spec.augmentation(student().image.input.size),
            spec.training(ContrastiveLossSpec(), num_samples=6000, seed=0),
        )
        for name, spec in specs.items()
    }
    return {name: [_plain(part) for part in group] for name, group in parts.items()} | {"student": _plain(student())}


def _plain(spec: object) -> object:
    return json.loads(to_json(spec))


CHOICES = {
    "training": _training,
    "classifying": _classifying,
    "reinforcing": _reinforcing,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "distilling": _distilling,
    "captioning": _captioning,
    "quickstart": _quickstart,
}


if __name__ == "__main__":
    for name, choices in CHOICES.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(choices(), indent=1) + "\n", encoding="utf-8")

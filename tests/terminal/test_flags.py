"""What the help says of a flag's values, and that it is read as before."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import attrs
import pytest
from tyro.conf import arg

from mobileclip.terminal import parse


@attrs.frozen(kw_only=True)
class Oven:
    """The choices of an oven.

    Args:
        degrees: how hot it is.
    """

    degrees: float | None = None


@attrs.frozen(kw_only=True)
class Cake:
    """The choices of a cake.

    Args:
        layers: how many; none for one by itself.
        sugar: in grams; None for another sweetness.
        fruits: what is in it.
        letters: on top.
        shop: where it is from.
        recipe: a file.
        kind: which.
        shapes: of what is on top.
        cut: how; None for a cake that stays whole.
        warm: whether it is eaten warm.
        glazed: whether it shines.
        oven: where it is baked.
    """

    layers: int | None = None
    sugar: float | None = 80.0
    fruits: tuple[str, ...] = ()
    letters: str = ""
    shop: Annotated[str | None, arg(metavar="ADDRESS")] = None
    recipe: Path | None = None
    kind: Literal["round", "square"] = "round"
    shapes: tuple[Literal["star", "heart"], ...] = ("star",)
    cut: Literal["halves", "thirds"] | None = None
    warm: bool = False
    glazed: bool = True
    oven: Oven = attrs.field(factory=Oven)


def helped(capsys, cls):
    with pytest.raises(SystemExit):
        parse(cls, ["--help"], description="")
    return capsys.readouterr().out


def test_what_goes_behind_a_flag_is_a_word_and_a_default_is_told_where_it_is_anything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = helped(capsys, Cake)
    flags = {" ".join(line.strip("│ ").split("  ")[0].split()) for line in out.splitlines()}
    assert flags >= {
        *("--layers INT", "--sugar FLOAT|None", "--fruits STR", "--letters STR", "--shop ADDRESS", "--recipe PATH"),
        *("--kind {round,square}", "--shapes {star,heart}", "--cut {halves,thirds}", "--oven.degrees FLOAT"),
    }
    defaults = re.findall(r"\(default: ([^)]*)\)", " ".join(out.replace("│", " ").split()))
    assert sorted(defaults) == ["80.0", "True", "round", "star"]


def test_flags_are_read_as_ever():
    assert parse(Cake, [], description="") == Cake()
    given = "--layers 3 --sugar None --fruits plum --fruits pear --warm --cut halves --shapes heart --shapes star"
    chosen = {"fruits": ("plum", "pear"), "shapes": ("heart", "star"), "oven": Oven(degrees=180.0)}
    expected = Cake(layers=3, sugar=None, warm=True, cut="halves", **chosen)
    assert parse(Cake, [*given.split(), "--oven.degrees", "180"], description="") == expected
    known = Cake(recipe=Path("a.txt"), oven=Oven(degrees=90.0))
    assert parse(Cake, ["--letters", "hello"], description="", default=known) == attrs.evolve(known, letters="hello")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "usage: recipes/bake.py ["),
        (SimpleNamespace(name="kitchen.bake"), "usage: python -m kitchen.bake ["),
        (SimpleNamespace(name="kitchen.__main__"), "usage: python -m kitchen ["),
    ],
)
def test_the_usage_has_what_was_typed(capsys, monkeypatch, spec, said):
    monkeypatch.setattr(sys, "argv", ["recipes/bake.py"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert said in helped(capsys, Cake)


@attrs.frozen(kw_only=True)
class Basket:
    """What is carried.

    Args:
        fruits: what is in it.
    """

    fruits: tuple[str, ...]


def test_a_list_that_must_be_given_is_shown_as_required_and_read(capsys):
    assert "(required)" in helped(capsys, Basket)
    assert parse(Basket, ["--fruits", "plum", "pear"], description="") == Basket(fruits=("plum", "pear"))
    with pytest.raises(SystemExit):
        parse(Basket, [], description="")

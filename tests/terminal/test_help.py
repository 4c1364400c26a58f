"""Help: its layout, and what it says of a flag's values, which are read as before."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import attrs
import pytest
from tyro.conf import arg

from mobileclip.cli import COMMANDS, Commands
from mobileclip.terminal import PROGRAMS, format_help, paragraphs, parse
from tests.errors import fails, told

WIDTH = 72


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def named(commands, *before):
    for name, one in commands.members.items():
        yield from named(one, *before, name) if isinstance(one, Commands) else [(*before, name)]


@pytest.mark.parametrize("arguments", [*named(COMMANDS)], ids=" ".join)
def test_a_description_fits_the_terminal(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        COMMANDS.run("mobileclip", [*arguments, "--help"])
    assert not stopped.value.code
    description = capsys.readouterr().out.partition("usage: ")[0]
    too_wide = [line for line in description.splitlines() if len(line) > WIDTH]
    assert all(line.strip().startswith(PROGRAMS) for line in too_wide)


def test_an_argument_is_told_in_whole_lines(capsys):
    def greet(*, name: str = "you", often: int | None = None):
        """Greet.

        Args:
            name: of the person, which is said
                aloud.
            often: how many times.
        """

    out = helped(capsys, greet)
    told(out, "of the person, which is said aloud. (default: you)", "how many times.  ")
    assert "None)" not in out


def test_commands_stay_lines_and_prose_is_filled():
    text = "Some\nprose.\n\npython a.py --data b\n  --more c\ntorchrun d.py"
    assert paragraphs(text) == "Some prose.\n\n  python a.py --data b --more c\n  torchrun d.py"


def test_further_lines_stand_below_the_text_and_are_short_on_a_wide_terminal(monkeypatch):
    told = format_help("word " * 30, heading="Time:  ")
    first, *rest = told.splitlines()
    assert first.startswith("Time:  word")
    assert rest
    assert all(line.startswith("       word") and len(line) <= WIDTH for line in rest)
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, format_help("word " * 200).splitlines())) <= 120


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
    with fails(SystemExit):
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


def test_the_usage_has_what_was_typed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/bake.py"])
    for name, program in {None: "recipes/bake.py", "a.b": "python -m a.b", "a.__main__": "python -m a"}.items():
        main = SimpleNamespace(__spec__=name and SimpleNamespace(name=name))
        monkeypatch.setitem(sys.modules, "__main__", main)
        assert f"usage: {program} [" in helped(capsys, Cake)


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
    with fails(SystemExit):
        parse(Basket, [], description="")

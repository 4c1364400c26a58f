"""Flags that take several values: once for each, and what follows is meant by itself."""

from __future__ import annotations

from typing import Annotated

import attrs
import pytest
import tyro
from tyro.conf import Positional, arg

from mobileclip.cli import COMMANDS, Commands
from mobileclip.cli.flags import Fields, flags_of, reader_of
from mobileclip.recipes.evaluating import Command as Evaluating
from mobileclip.recipes.reinforcing import Command as Reinforcing
from mobileclip.terminal import in_order, parse, told_of_specs


@attrs.frozen(kw_only=True)
class Rows:
    """How rows are read.

    Args:
        hosts: that are let in.
        is_quick: whether to hurry.
    """

    hosts: tuple[str, ...] = ("here",)
    is_quick: bool = False


def look(
    text: Annotated[Positional[str | None], arg(metavar="[TEXT]")] = None,
    /,
    *,
    without: Annotated[tuple[str, ...], arg(name="not", aliases=["-n"])] = (),
    where: tuple[str, ...] = (),
    offsets: tuple[int, ...] = (1, 2),
    size: tuple[int, int] = (0, 0),
    k: Annotated[int, arg(aliases=["-k"])] = 10,
    as_json: Annotated[bool, arg(name="json")] = False,
    rows: Annotated[Rows, Fields(flags=("hosts", "is_quick"))] = Rows(),
):
    """Look."""
    return {
        "text": text,
        "not": without,
        "where": where,
        "offsets": offsets,
        "size": size,
        "k": k,
        "json": as_json,
        "hosts": rows.hosts,
    }


def read(models: Positional[tuple[str, ...]], /, *, beside: tuple[str, ...] = (), k: int = 10):
    """Read."""
    return models, beside, k


NOTHING = {
    "text": None,
    "not": (),
    "where": (),
    "offsets": (1, 2),
    "size": (0, 0),
    "k": 10,
    "json": False,
    "hosts": ("here",),
}


def readable(command):
    return reader_of(command, flags_of(command))


def looked(line):
    return parse(readable(look), line, description="", prog="look")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--not", "people", "a cat"], {"text": "a cat", "not": ("people",)}),
        (["--not", "people", "--not", "dogs", "a cat"], {"text": "a cat", "not": ("people", "dogs")}),
        (["--not=people", "a cat", "--not=dogs"], {"text": "a cat", "not": ("people", "dogs")}),
        (["-n", "people", "--json", "a cat"], {"text": "a cat", "not": ("people",), "json": True}),
        (["--where", "w>1", "--where", "t>2", "a cat"], {"text": "a cat", "where": ("w>1", "t>2")}),
        (["--where", "w>1", "a cat", "-k", "3"], {"text": "a cat", "where": ("w>1",), "k": 3}),
        (["--hosts", "there", "a cat"], {"text": "a cat", "hosts": ("there",)}),
        (["--size", "3", "4", "--not", "x", "a cat"], {"text": "a cat", "size": (3, 4), "not": ("x",)}),
        # Several values behind one flag, where the text is elsewhere.
        (["a cat", "--where", "w>1", "t>2"], {"text": "a cat", "where": ("w>1", "t>2")}),
        (["a cat", "--where", "w>1", "t>2", "--where", "h>3"], {"text": "a cat", "where": ("w>1", "t>2", "h>3")}),
        (["--where", "w>1", "t>2", "-k", "3", "a cat"], {"text": "a cat", "where": ("w>1", "t>2"), "k": 3}),
        (["--offsets", "-1", "-2", "--json", "a cat"], {"text": "a cat", "offsets": (-1, -2), "json": True}),
        (["a cat", "--offsets"], {"text": "a cat", "offsets": ()}),
        (["--not", "people"], {"not": ("people",)}),
        (["--offsets", "5", "--offsets", "6"], {"offsets": (5, 6)}),
        (["--k", "1", "--k", "2"], {"k": 2}),
        (["--not", "people", "-"], {"text": "-", "not": ("people",)}),
        (["--is_quick", "--not", "people", "a cat"], {"text": "a cat", "not": ("people",)}),
    ],
    ids=" ".join,
)
def test_what_is_typed_is_what_is_meant(line, expected):
    assert looked(line) == NOTHING | expected


@pytest.mark.parametrize(
    "line", [["--not", "people", "dogs", "a cat"], ["--where", "w>1", "t>2", "--not", "people", "a cat"]], ids=" ".join
)
def test_what_cannot_be_meant_is_told_with_how_it_is_written(capsys, line):
    with pytest.raises(SystemExit) as ended:
        looked(line)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("look: ")
    assert "a flag takes one value, and is given again for the next, as in " in said


def test_any_number_of_positional_ones_may_follow():
    command = readable(read)
    assert parse(command, ["--beside", "b", "m1", "m2"], description="") == (("m1", "m2"), ("b",), 10)
    assert parse(command, ["m1", "--beside", "b", "c"], description="") == (("m1",), ("b", "c"), 10)
    assert parse(command, ["--beside", "b", "--beside", "c", "m1"], description="") == (("m1",), ("b", "c"), 10)


def test_a_class_of_flags_alone_takes_several_behind_one():
    assert parse(Rows, ["--hosts", "a", "b", "--is-quick"], description="") == Rows(hosts=("a", "b"), is_quick=True)
    assert parse(Rows, ["--hosts", "a", "--hosts", "b"], description="") == Rows(hosts=("a", "b"))
    known = Rows(hosts=("x", "y"))
    assert parse(Rows, ["--hosts", "a", "--hosts", "b"], description="", default=known) == Rows(hosts=("a", "b"))
    assert parse(Rows, ["--is-quick"], description="", default=known) == Rows(hosts=("x", "y"), is_quick=True)


def test_what_is_no_flag_of_it_is_left_to_the_reader(capsys):
    with pytest.raises(SystemExit):
        looked(["--nott", "people", "dogs", "a cat"])
    assert "--nott" in "".join(capsys.readouterr())


def every(commands, *before):
    for name, one in commands.members.items():
        if isinstance(one, Commands):
            yield from every(one, *before, name)
        else:
            yield pytest.param(readable(one.load()), id=" ".join((*before, name)))


@pytest.mark.parametrize(
    "target", [*every(COMMANDS), pytest.param(Evaluating, id="evaluate"), pytest.param(Reinforcing, id="reinforcing")]
)
def test_the_flags_of_every_command_may_be_given_again(target):
    with told_of_specs(), pytest.warns(DeprecationWarning, match="get_parser"):
        actions = tyro.extras.get_parser(target, prog="x")._actions
    several = [action.option_strings[0] for action in actions if action.option_strings and action.nargs == "*"]
    others = [action.option_strings[0] for action in actions if action.option_strings and action.nargs == 1]
    flagged = [action.option_strings[0] for action in actions if action.option_strings and action.nargs == 0]
    takes_more = any(not action.option_strings for action in actions)
    for flag in several:
        around = [*(part for name in others for part in (name, "1")), *flagged[1:]]
        line = [*around, flag, "a", flag, "b", *(["c"] if takes_more else [])]
        assert in_order(target, line) == [*(["c"] if takes_more else []), *around, flag, "a", "b"]

"""One vocabulary of flags: how many there are, keys and old names that are read as what they stand for, the page."""

import functools
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

import pytest

from mobileclip.cli import main
from mobileclip.cli.flags import COMMON, SHORT, flags_of, reader_of, spelled_out
from mobileclip.cli.renamed import OLD_COMMANDS, OLD_FLAGS, OLD_PLACES, with_new_names
from mobileclip.terminal import parse
from tests.flags import PAGE, commands, page, shown

MOST = 204
EVERY = dict(commands())
LINES = {
    "classify": "a.jpg cat",
    "export": "m.pt -o x",
    "merge": "a -o b",
    "eval run": "m.pt",
    "eval orders": "k",
    "verify": "x",
    "info": "m",
    "check-weights": "m",
    "data inspect": "s.tar",
    "data count": "s.tar",
    "data check": "d",
    "data urls": "s.tar -o u.csv",
    "data join": "r.tar i.tar -o out",
    "data score": "s.tar -o out",
    "data filter": "scores -o k.npy",
    "data distinct": "scores -o k.npy",
    "data tune-scale": "s.tar",
    "convert": "m.pt -o n.pt",
    "hub save": "m.pt -o out --license mit",
    "hub push": "m.pt me/it --license mit",
    "tokenizer train": "t.txt -o t.json --vocab-size 300",
    "tokenizer prune": "m.pt t.txt -o n.safetensors",
    "recipes cp": "s2",
    "runs": "a",
    "quantize": "m.pt -o n.safetensors",
    "upgrade": "--to m",
}


def read_as_typed(command, function, line):
    """Return what a command would be called with."""

    @functools.wraps(function)
    def recorded(*positional, **named):
        return positional, named

    flags = flags_of(recorded)
    typed = spelled_out(with_new_names(command, line, flags), flags)
    return parse(reader_of(recorded, flags), typed, description="", prog="x")


def read(command, line):
    return _read(command, tuple(line.split() if isinstance(line, str) else line))


@functools.cache
def _read(command, words):
    return read_as_typed(command, EVERY[command].load(), list(words))


def test_there_are_no_more_flags_than_a_person_can_learn():
    """Each counts once in every command that has it; those of all commands count once."""
    counted = {name: shown(flags_of(one.load())) for name, one in EVERY.items()}
    assert sum(map(len, counted.values())) + len(COMMON) <= MOST, counted


def test_a_flag_takes_the_same_in_every_command():
    """A name stands for one kind of value, and a letter for one name."""
    switches = {}
    for name, one in EVERY.items():
        for flag in flags_of(one.load()):
            if not flag.is_positional and flag.keyed is None:
                switches.setdefault(flag.name, {}).setdefault(flag.is_switch, []).append(name)
    assert [name for name, kinds in switches.items() if len(kinds) > 1] == []
    assert len(set(SHORT.values())) == len(SHORT)


def values(kind, default=None):
    """Return something that a flag takes, other than its default."""
    kind = get_args(kind)[0] if get_origin(kind) is not Literal and hasattr(kind, "__metadata__") else kind
    if get_origin(kind) is Literal:
        return next(one for one in reversed(get_args(kind)) if one != default)
    if get_origin(kind) in (tuple, Union) or type(None) in get_args(kind):
        return values(get_args(kind)[0], default)
    return {int: "7", float: "0.25", str: "x=y", Path: "some/x=y"}[kind]


KEYS = [
    pytest.param(name, flag, id=f"{name} {flag.key}")
    for name, one in EVERY.items()
    for flag in flags_of(one.load())
    if flag.keyed
]


@pytest.mark.parametrize(("command", "flag"), KEYS)
def test_a_key_is_the_flag_that_it_was(command, flag):
    if flag.is_switch:
        keyed, alone = [flag.keyed, f"{flag.key}={'no' if flag.default else 'yes'}"], [flag.name]
        alone = [f"--no-{flag.key}"] if flag.default else alone
    else:
        value = values(flag.kind, flag.default)
        keyed, alone = [flag.keyed, f"{flag.key}={value}"], [flag.name, value]
    if flag.key == "backend":
        keyed, alone = ([*one, "--target", "executorch", "--precision", "float32"] for one in (keyed, alone))
    line = LINES.get(command, "").split()
    # Of the limits of stores, that two are equal says nothing.
    assert repr(read(command, [*line, *keyed])) == repr(read(command, [*line, *alone])) != repr(read(command, line))


OLD = {
    "check-weights": [("--pictures a.png b.png", "--image a.png --image b.png")],
    "convert": [("--dtype float16", "--precision float16"), ("m.pt n.pt", "m.pt -o n.pt")],
    "data count": [("--again", "--overwrite"), ("--no-again", "--no-overwrite")],
    "data distinct": [("--pairs p.tsv", "-o p.tsv")],
    "data score": [("--vectors", "--keep-vectors"), ("--no-vectors", "--no-keep-vectors")],
    "data filter": [("--sheet s.png", "-o s.png")],
    "data join": [("--index i", "--set places=i"), ("r i out", "r i -o out"), ("r i -j 2 out", "r i -j 2 -o out")],
    "dedup": [("--page p.html", "-o p.html"), ("-o l.jsonl --page p.html", "-o l.jsonl -o p.html")],
    "eval run": [("--num-threads 3", "-j 3")],
    "export": [("m.pt --out x", "m.pt -o x"), ("m.pt --out=x", "m.pt -o x")],
    "index": [("--web w.safetensors", "-o w.safetensors")],
    "merge": [("a --index b", "a -o b"), ("a -i b", "a -o b")],
    "search": [("--sheet s.png", "-o s.png")],
    "hub push": [("m.pt a/b --licence mit", "m.pt a/b --license mit")],
    "hub save": [
        ("m.pt d --licence mit", "m.pt -o d --license mit"),
        ("m.pt --license mit --set fold=yes d", "m.pt -o d --license mit --set fold=yes"),
    ],
    "recipes cp": [("s2 a.py", "s2 -o a.py")],
    "verify": [("--checkpoint m.pt", "--model m.pt"), ("-c m.pt", "-m m.pt")],
}
WHOLE = ("convert", "data join", "export", "merge", "hub save", "hub push", "recipes cp")


@pytest.mark.parametrize(
    ("command", "old", "new"), [(name, old, new) for name, lines in OLD.items() for old, new in lines]
)
def test_an_old_name_is_read_as_the_new_one(command, old, new):
    first = LINES.get(command, "")
    if command in WHOLE and not old.startswith("--"):
        first = ""
    assert read(command, f"{first} {old}") == read(command, f"{first} {new}")


def test_what_is_searched_for_is_no_flag():
    """A value that would be one with a hyphen in place of its underscore."""
    assert repr(read("search", ["_k"])) == repr(read("search", ["cat"])).replace("cat", "_k")


def test_every_old_name_has_a_line_here():
    assert OLD.keys() == OLD_FLAGS.keys() | OLD_PLACES.keys()
    typed = {name: " ".join(old for old, _ in lines).replace("=", " ").split() for name, lines in OLD.items()}
    assert [(name, old) for name, names in OLD_FLAGS.items() for old in names if old not in typed[name]] == []


@pytest.mark.parametrize("old", OLD_COMMANDS)
def test_an_old_command_is_the_new_one_and_is_not_listed(capsys, old):
    said = []
    for name in (old, OLD_COMMANDS[old]):
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert old.split()[1] not in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("embed a.jpg --rows url-colum=x", "--rows has no key 'url-colum'; did you mean 'url-column'"),
        ("data count a.tar --engine triess=2", "--engine has no key 'triess'; did you mean 'tries'?"),
        ("index a.jpg --set nonsense=2", "--set has no key 'nonsense'; known: batch-size, context-length, decode"),
        ("export m.pt -o x --set normalize=maybe", "--set normalize=maybe is neither on nor off; write normalize=yes"),
        ("dedup a.jpg -o a.txt", "a.txt cannot be written: its name must end with .jsonl or .html"),
        ("dedup a.jpg -o a.jsonl -o b.jsonl", "--output is a.jsonl and b.jsonl, which are of one kind"),
        ("data filter scores -o a.png", "--output names no list of uids: one that must end with .npy"),
    ],
)
def test_what_is_no_key_and_no_output_is_told(capsys, monkeypatch, tmp_path, line, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_has_keys_with_their_flag_and_all_help_has_them_apart(capsys):
    said = []
    for asked in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            main(["index", asked])
        assert ended.value.code == 0
        said.append(" ".join(capsys.readouterr().out.split()))
    assert ["--video-seconds" in one for one in said] == [False, True]
    assert ["video-seconds" in one for one in said] == [True, True]
    assert "--checkpoint" not in said[0]


def test_the_page_of_flags_is_what_the_parser_says():
    """`python -m tests.flags` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page()

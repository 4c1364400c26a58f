"""The commands by name: what `--help` lists, what a wrong name is told, what the shell completes, what can be typed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip.cli import COMMANDS, Commands
from tests.build.commands import run
from tests.cli.test_pages_commands import read

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE_COMMANDS = (("train",), ("reinforce",), ("finetune",))
FLAG = r"(?<![\w-])--[a-z][\w.-]*"


def every(commands, *before):
    for name, one in commands.members.items():
        yield pytest.param((*before, name), one, id=" ".join((*before, name)))
        if isinstance(one, Commands):
            yield from every(one, *before, name)


@pytest.mark.parametrize(("names", "one"), [*every(COMMANDS)])
def test_an_example_can_be_typed(names, one):
    """It is read as the command itself reads it, which is then not called."""
    typed = shlex.split(one.example)
    assert typed[0] == names[-1]
    if isinstance(one, Commands):
        assert one.members.get(typed[1], typed[1] in names or names == ("eval",))
    elif names[0] in ("train", "reinforce"):
        assert (RECIPES / f"{names[0]}_{typed[1]}.py").is_file()
    else:
        assert read([*names[:-1], *typed]) is not None


@pytest.mark.parametrize("names", [(), ("data",), ("hub",), ("recipes",)])
def test_the_list_fits_a_screen_of_eighty_columns(capsys, monkeypatch, names):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run(capsys, *names, "--help")
    assert (status, err) == (0, "")
    assert (max(map(len, out.splitlines())) <= 80, out.count("\n") <= 45) == (True, True)
    assert run(capsys, *names)[:2] == (2, out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serch a", "'serch'; did you mean 'search' or 'serve'?"),
        ("--quiet", "'--quiet'; mobileclip --help lists them"),
        ("data scor", "'scor'; did you mean 'score'?"),
        ("data frobnicate", "'frobnicate'; mobileclip data --help lists them"),
    ],
)
def test_a_command_that_is_none_is_told_the_nearest(capsys, arguments, message):
    assert run(capsys, *arguments.split()) == (2, "", f"mobileclip: there is no command {message}\n")


LEAVES = [one for one in every(COMMANDS) if not isinstance(one.values[1], Commands)]


@pytest.mark.parametrize(("names", "one"), [one for one in LEAVES if one.values[0] not in RECIPE_COMMANDS])
def test_help_is_short_and_rare_flags_are_shown_by_help_all(capsys, monkeypatch, names, one):
    monkeypatch.setenv("COLUMNS", "110")
    short, whole = (run(capsys, *names, asked)[1] for asked in ("--help", "--help-all"))
    assert len(short.splitlines()) <= 60
    assert {*re.findall(FLAG, short)} <= {*re.findall(FLAG, whole)}


@pytest.mark.parametrize(
    ("line", "common", "rare"),
    [
        ("index", "--num-workers", "--video-frames"),
        ("search", "--where", "--all-frames"),
        ("eval run", "--suite", "--stores.max-bytes"),
        ("eval run", "--batch-size", "--caption-columns"),
        ("export", "--target", "--converter"),
        ("data join", "--engine", "--pause-growth"),
    ],
)
def test_a_rare_flag_is_shown_by_help_all_alone(capsys, line, common, rare):
    short, whole = (re.findall(FLAG, run(capsys, *line.split(), asked)[1]) for asked in ("--help", "--help-all"))
    assert (common in short, rare in short, rare in whole) == (True, False, True)


def test_a_rare_flag_is_read():
    _, chosen = read(shlex.split("index photos/ --video-frames scenes --batch-size 4"))
    assert (chosen["video_frames"], chosen["batch_size"]) == ("scenes", 4)


COMPLETE = """
COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1)); _tyro_mobileclip; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_the_tabulator_key_in_bash_completes_commands_and_their_flags(capsys):
    _, script, _ = run(capsys, "completion")

    def completed(*words):
        quoted = " ".join(f"'{word}'" for word in ("mobileclip", *words))
        ask = script + COMPLETE.format(words=quoted, count=len(words) + 1)
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
        return [line.split()[0] for line in done.stdout.splitlines() if line.split()]

    assert {"classify", "search", "data", "eval"} <= {*completed("")}
    assert (completed("cl"), completed("data", "fi")) == (["classify"], ["filter"])
    assert completed("search", "a cat", "--wh")[0] == "--where"
    assert {"--device", "--help"} <= {*completed("index", "--")}


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch is wanted")

sys.meta_path.insert(0, NoTorch())
from mobileclip.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as ended:
        print("ended with", ended.code)
    print("-----")
"""


def test_what_computes_nothing_does_without_torch():
    """In one process: what one of them imported would be there for the others, and nobody imports torch."""
    lines = ("--version", "--help", "search --help", "classify --help", "data join --help", "list")
    command = [sys.executable, "-c", WITHOUT_TORCH, *lines]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    *said, rest = done.stdout.split("-----\n")
    assert (len(said), rest) == (len(lines), "")
    for line, one in zip(lines, said, strict=True):
        assert "mobileclip" in one, line
        assert "ended with" not in one.replace("ended with 0", "").replace("ended with None", ""), line

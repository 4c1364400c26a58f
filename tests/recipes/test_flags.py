"""The help of recipes: short, without torch, and of the flags that there are."""

import json
import re
import subprocess
import sys
from contextlib import suppress

import pytest

from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.recipes import LINES, recipe_files, shorts
from tests.cli.test_table import WITHOUT_TORCH
from tests.errors import fails
from tests.recipes.choices import ROWS, runs_of
from tests.recipes.running import run_named, shown

ONE_OF_EACH = {
    "RunSpec": "train_s2",
    "ReinforcementSpec": "reinforce_datacompdr12m",
    "FinetuneSpec": "finetune",
    "EvaluationSpec": "evaluate",
    "DistilSpec": "distil_text",
}
SHORT = "--steps 50 --batch-size=64 --micro-batch 8 --recompute --learning-rate 0.1 -j 3 --precision float32"
FULL = (
    "--training.schedule.total-steps 50 --data.batch-size 64 --training.memory.micro-batch 8 "
    "--training.memory.recompute --training.schedule.peak 0.1 --data.num-workers 3 --training.precision float32"
)


def helped(capsys, name, *arguments):
    with suppress(SystemExit):
        run_named(name, *arguments)
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("name", recipe_files())
def test_the_short_help_names_the_rows_and_says_how_to_see_all(name, capsys):
    said = helped(capsys, name, "--help")
    assert f"`{name} --help-all` lists all flags" in said
    assert all(f"  {row} " in said for one in runs_of(name) if (row := one.partition(" ")[2]))


@pytest.mark.parametrize("kind", LINES)
def test_what_the_short_help_shows_is_taken_and_is_in_the_full_help(kind, capsys):
    full = set(re.findall(r"(?<!\S)--?[a-z][\w.-]*", helped(capsys, ONE_OF_EACH[kind], "--help-all")))
    assert {name for flag in shorts(kind) for name in flag.names} <= full


@pytest.mark.parametrize(
    ("name", "short", "full"),
    [
        ("train_s2", f"--quiet --data a.tar b.tar {SHORT}", f"--data a.tar --data b.tar {FULL}"),
        ("train_imagenet_mci mci1", "--steps 4000 --quiet", "--training.schedule.total-steps 4000"),
        ("finetune", "-m a.pt -o out -j 2 --quiet", "--model a.pt --output out --num-workers 2"),
        ("finetune", "-m mobileclip_s2", f"--checkpoint {PRETRAINED['mobileclip_s2']}"),
        ("distil_text", "-m a.pt -o out --steps 9", "--model a.pt --output out --training.schedule.total-steps 9"),
        ("evaluate", "a.pt -o out -j 2 --quiet", "a.pt --output out --num-threads 2"),
    ],
)
def test_short_names_choose_the_same(name, short, full, capsys):
    assert shown(capsys, name, *short.split()) == shown(capsys, name, *full.split()) != shown(capsys, name)


def test_the_short_help_does_without_torch():
    lines = "train s2", "train vit_b16_12m", "train distil_text", "reinforce dfndr2b", "finetune"
    command = [sys.executable, "-c", WITHOUT_TORCH, *(f"{line} --help" for line in lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"usage: mobileclip {line} " in done.stdout for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [([], ValueError, "ensemble"), (["--tiny"], ValueError, "plain"), (["ensembl"], ValueError, "'ensembl'")],
)
def test_a_recipe_of_several_runs_says_which_there_are(arguments, code, named):
    with fails(SystemExit, named):
        run_named(ROWS, *arguments)


@pytest.mark.parametrize("name", ["reinforce_datacompdr12m", "finetune", "distil_text", "evaluate"])
def test_a_small_run_writes_where_it_is_told_and_otherwise_beside_the_whole_one(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(shown(capsys, name, "--tiny", "-o", "here"))["output"] == "here"
    without = json.loads(shown(capsys, name, "--tiny")).get("output")
    assert without in (f"outputs/{name}-tiny", None, "")

"""The flags that people set: a short help of them, their short names, and names of before."""

import re
import subprocess
import sys

import pytest

from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.recipes import FLAGS, RENAMED, canonical, recipe_files
from tests.cli.test_table import WITHOUT_TORCH
from tests.errors import fails
from tests.recipes.choices import ROWS, WITH_ROWS
from tests.recipes.running import run_named, shown

ONE_OF_EACH = {
    "training": "train_s2",
    "classifying": "train_imagenet_mci mci0",
    "reinforcing": "reinforce_datacompdr12m",
    "finetuning": "finetune",
    "evaluating": "evaluate",
    "distilling": "distil_text",
    "captioning": "train_coca context_77",
}

SHORT = "--steps 50 --batch_size=64 --micro-batch-size 8 --learning-rate 0.1 -j 3 --precision float32"
FULL = (
    "--training.schedule.total-steps 50 --pipeline.batch-size 64 --training.micro-batch-size 8 "
    "--training.schedule.peak 0.1 --pipeline.num-workers 3 --training.precision float32"
)


def helped(capsys, name, *arguments):
    with pytest.raises(SystemExit) as ended:
        run_named(name, *arguments)
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    return said.out


@pytest.mark.parametrize("name", recipe_files())
def test_the_short_help_is_one_screen_and_says_how_to_see_all(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    header, _, below = helped(capsys, name, "--help").partition("usage: ")
    commands = [line for line in header.splitlines() if re.search("torchrun |python ", line)]
    others = [*(line for line in header.splitlines() if line not in commands), *below.splitlines()]
    assert max(map(len, others)) <= 80
    # A command is a line that can be copied, which the terminal breaks.
    height = len(others) + sum(1 + len(line) // 80 for line in commands)
    with_rows = {*WITH_ROWS, "train_imagenet_mci", "distil_text_s0", "train_coca", "finetune_coca"}
    assert height <= (42 if name in with_rows else 28)
    assert f"`{name} --help-all` lists all flags." in below


@pytest.mark.parametrize("kind", FLAGS)
def test_what_the_short_help_shows_is_taken_and_is_in_the_full_help(kind, capsys):
    full = set(re.findall(r"(?<!\S)--[a-z][\w.-]*", helped(capsys, ONE_OF_EACH[kind], "--help-all")))
    for names in (flag.names.split(", ") for flag in FLAGS[kind]):
        assert {canonical(kind, [name])[0] for name in names} <= full, names
        assert len({*canonical(kind, names)}) == 1
    assert RENAMED.get(kind, {}).keys().isdisjoint(full)
    assert {*RENAMED.get(kind, {}).values()} <= full
    assert helped(capsys, ONE_OF_EACH[kind], "--help", "all") == helped(capsys, ONE_OF_EACH[kind], "--help-all")


@pytest.mark.parametrize(
    ("name", "short", "full"),
    [
        ("train_s2", f"--quiet --data a.tar b.tar {SHORT}", f"--data a.tar b.tar {FULL}"),
        (
            "train_vit_b16_12m plain",
            "--steps=4000 -j 1 --quiet",
            "--training.schedule.total-steps=4000 --pipeline.num-workers 1",
        ),
        ("train_imagenet_mci mci1", "--steps 4000 --quiet", "--training.schedule.total-steps 4000"),
        ("reinforce_datacompdr12m", "--data a.tar -o out --quiet", "--source a.tar --output out"),
        ("finetune", "-m a.pt -o out -j 2 --quiet", "--checkpoint a.pt --output out --num-workers 2"),
        ("finetune", "-m mobileclip_s2=a.pt", "--model mobileclip_s2 -c a.pt"),
        ("finetune", "-m mobileclip_s2", f"-c {PRETRAINED['mobileclip_s2']}"),
        (
            "distil_text",
            "-m a.pt -o out --steps 9 --quiet",
            "--model a.pt --output out --training.schedule.total-steps 9",
        ),
        ("evaluate", "a.pt -o out -j 2 --quiet", "a.pt --output out --num-threads 2"),
    ],
)
def test_short_names_and_names_of_before_choose_the_same(name, short, full, capsys):
    chosen = shown(capsys, name, *short.split())
    assert chosen == shown(capsys, name, *full.split())
    assert chosen != shown(capsys, name, *(["--data", "c.tar"] if name.startswith("reinforce") else []))


def test_the_short_help_does_without_torch():
    lines = "train s2", "train distil_text", "reinforce dfndr2b", "finetune"
    command = [sys.executable, "-c", WITHOUT_TORCH, *(f"{line} --help" for line in lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"usage: mobileclip {line} [FLAGS]" in done.stdout for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ([], "recipes.run-name-comes-first", "ensemble"),
        (["--tiny"], "recipes.run-name-comes-first", "plain"),
        (["ensembl"], "recipes.run-help-says-each", "'ensembl'"),
    ],
)
def test_a_recipe_of_several_runs_says_which_there_are(arguments, code, named):
    with fails(code, named, by=SystemExit):
        run_named(ROWS, *arguments)

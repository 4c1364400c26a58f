"""Recipes for who installed the package: found, run, copied, and runs side by side."""

import json
import sys
from pathlib import Path

import pytest

from mobileclip.cli import main
from mobileclip.recipes import find_recipe, recipe_files
from mobileclip.serialization import from_json
from mobileclip.training import RunSpec
from tests.build.commands import refused, run
from tests.errors import told
from tests.preloaded import preloaded

ROOT = Path(__file__).parents[2]


def test_every_recipe_is_listed_with_its_command(capsys):
    main(["recipes", "ls"])
    out = capsys.readouterr().out
    commands = [line for line in out.splitlines() if line.startswith("mobileclip ")]
    assert len(commands) == len(recipe_files()) == len(list((ROOT / "recipes").glob("*.py")))
    told(out, "\nmobileclip train s2\t", "mobileclip reinforce datacompdr12m")


def test_the_full_help_has_the_whole_header_and_the_command_that_runs_it(capsys):
    with pytest.raises(SystemExit):
        main(["train", "s2", "--help-all"])
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("Train MobileCLIP-S2 on DataCompDR-1B. Command:")
    command = "Command: torchrun --nproc-per-node 8 -m mobileclip.cli train s2 --data"
    tiny = "Try it: mobileclip train s2 --tiny Hardware:"
    told(out, "usage: mobileclip train s2 [-h]", command, tiny, "Time:", "Result:", "Source:")
    assert sys.argv[0] != "mobileclip train s2"


def test_a_recipe_gives_the_choices_of_its_file(capsys):
    main(["train", "s2", "--show", "--data", "a.tar", "--training.seed", "7"])
    spec = from_json(capsys.readouterr().out, RunSpec)
    assert (spec.data.shards, spec.training.seed) == (("a.tar",), 7)
    assert spec.training.schedule.total_steps == 200_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train s22", "unknown recipe 's22'; did you mean 's2'"),
        ("train datacompdr12m", "unknown recipe 'datacompdr12m'; no name is like it"),
        ("train nowhere/mine.py", "there is no recipe file nowhere/mine.py"),
        ("recipes cp s9x -o .", "unknown recipe 's9x'; "),
        ("train s2 --import", "--import needs the name of a module"),
        ("train s2 --import no_such_parts", "no_such_parts cannot be imported"),
        ("runs nowhere", "nowhere is not a training output"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys):
    refused(capsys, message, *arguments.split())


def test_a_copy_runs_in_another_folder_under_another_name(tmp_path, capsys):
    copied = tmp_path / "elsewhere" / "mine.py"
    main(["recipes", "cp", "s0", "-o", str(copied)])
    assert f"python {copied} --tiny" in capsys.readouterr().out
    assert copied.read_text() == find_recipe("train_s0").read_text()
    assert run(capsys, "recipes", "cp", "s0", "-o", copied)[0] == 2
    main(["recipes", "cp", "s1", "-o", str(copied.parent)])
    assert (copied.parent / "train_s1.py").is_file(), "in a folder it has its own name"
    capsys.readouterr()
    copied.write_text(copied.read_text().replace("distill_weight=1.0", "distill_weight=0.75"))
    done = preloaded().call("tests.preloaded:python", str(copied), "--show", "--data", "a.tar", folder=tmp_path)
    main(["train", str(copied), "--show", "--data", "a.tar"])
    assert (done.status, done.output) == (0, capsys.readouterr().out)
    assert from_json(done.output, RunSpec).training.loss.distill_weight == 0.75


def test_runs_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed, peak, top1 in (("a", 0, 0.1, 0.5), ("b", 1, 0.1, 0.7), ("c", 0, 0.2, 0.9)):
        Path(name).mkdir()
        spec = {"model": {"depths": [1, 2]}, "training": {"seed": seed, "schedule": {"peak": peak}}}
        Path(name, "run.json").write_text(json.dumps(spec))
        losses = [{"step": step, "loss": 3.0 - step, "learning_rate": 0.1 * (1 - step)} for step in (0, 1)]
        lines = map(json.dumps, (*losses, {"step": 2, "top1": top1}))
        Path(name, "metrics.jsonl").write_text("\n".join([*lines, ""]))
    main(["runs", "a", "b", "c", "-o", "curves.png"])
    out = capsys.readouterr().out
    rows = {" ".join(line.split()) for line in out.splitlines()}
    expected = {"training.schedule.peak 0.1 0.2", "run steps top1 loss", "a, b 2 0.6 ± 0.14 (2) 2 ± 0 (2)"}
    assert {*expected, "c 2 0.9 2"} <= rows
    assert "seed" not in out
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")

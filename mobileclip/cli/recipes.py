"""`mobileclip train`, `reinforce`, `finetune`, `recipes` and `runs`: the recipes, for who installed the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mobileclip.recipes.files import KINDS, copy_recipe, find_recipe, header_of, recipe_files, run_file
from mobileclip.terminal import print_table, say

Recipe = Annotated[Positional[str], arg(metavar="NAME|RECIPE.py [FLAGS]")]
Runs = Annotated[Positional[tuple[str, ...]], arg(metavar="RUN...")]


def train(recipe: Recipe, /) -> None:
    """Train by a recipe: `mobileclip recipes ls` lists them, and `mobileclip train NAME --help` has all its flags.

    mobileclip train s2 --tiny

    mobileclip train s2 --data 'DataCompDR-1B/{00..64}/{00000000..00000999}.tar'
    torchrun --nproc-per-node 8 -m mobileclip.cli train my_recipe.py --data 'mine/{000..127}.tar'

    Args:
        recipe: a published one, such as s2 or mobileclip2_s4, or a file of your own; then its own flags.
    """
    run("train", [recipe])


def reinforce(recipe: Recipe, /) -> None:
    """Reinforce a data set by a recipe: synthetic captions and embeddings of teachers beside its pairs.

    mobileclip reinforce datacompdr12m --tiny

    mobileclip reinforce datacompdr12m --data DataComp-12M --output DataCompDR-12M --dry-run

    Args:
        recipe: a published one, such as datacompdr12m, or a file of your own; then its own flags.
    """
    run("reinforce", [recipe])


def finetune() -> None:
    """Fine-tune a checkpoint on pictures of your own, and see what it costs; `--help` has all flags.

    mobileclip finetune --tiny

    mobileclip finetune -m mobileclip_s2.pt --data flowers/ --old-tasks imagenet-val/
    """
    run("finetune", [])


def is_run(arguments: Sequence[str]) -> bool:
    """Return whether a recipe is to be run, whose flags are its own."""
    return arguments[:1] == ["finetune"] or (
        bool(arguments) and arguments[0] in KINDS and arguments[1:2] not in ([], ["-h"], ["--help"])
    )


def run(command: str, arguments: Sequence[str]) -> None:
    """Run a recipe.

    Args:
        command: `train`, `reinforce` or `finetune`.
        arguments: the recipe's name where there are several, and its command line.

    Raises:
        ValueError: if there is no such recipe.
    """
    if command == "finetune":
        run_file(find_recipe(command), arguments, program="mobileclip finetune")
        return
    name, *rest = arguments
    run_file(find_recipe(name, command), rest, program=f"mobileclip {command} {name}")


def list_recipes() -> None:
    """Print the published recipes: what each does, the command that runs it, and on what hardware."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("command", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for name, file in recipe_files().items():
        table.add_row(_command(name), header_of(file).title)
    print_table(table)
    say("Each has --help, and each but eval has --tiny, which tries the whole path in a minute or two.")


def copy(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE|FOLDER")] = Path(),
    overwrite: bool = False,
) -> None:
    """Copy a recipe to change it; the copy runs by itself, wherever it lies and whatever it is called.

    mobileclip recipes cp train_s2 -o my_s2.py
    python my_s2.py --tiny

    Args:
        name: as `mobileclip recipes ls` has it, or the file's: s2 and train_s2 are one.
        output: the copy, or a folder for it.
        overwrite: replace a file that is there.
    """
    copied = copy_recipe(name, output, overwrite=overwrite)
    say(f"{copied}: python {copied} --tiny")


def runs(
    folders: Runs,
    /,
    *,
    output: Annotated[Path | None, arg(metavar="FILE.png")] = None,
    overwrite: bool = False,
) -> None:
    """Set trainings side by side: what they chose differently, how good they became, and their curves in one picture.

    mobileclip runs outputs/train_s2 outputs/train_s2-wide -o curves.png

    Runs that differ in their seed alone are one row, with mean and standard deviation.

    Args:
        folders: outputs of trainings, finished or not; folders, or URLs such as s3://bucket/run.
        output: a picture of their curves, one panel a metric.
        overwrite: replace a picture that is there.
    """
    from rich.table import Table

    from mobileclip.storage import join, require_output
    from mobileclip.training.records.comparison import compare_runs
    from mobileclip.training.records.plots import plot_curves

    if output is not None:
        require_output(output, overwrite=overwrite, suffixes=(".png",))
    compared = compare_runs(folders)
    if compared.choices:
        table = Table(title="What they chose differently", box=None)
        table.add_column("choice", overflow="fold")
        for group in compared.groups:
            table.add_column(group.name, overflow="fold")
        for name, values in compared.choices.items():
            table.add_row(name, *values)
        print_table(table)
    table = Table(title="Metrics at the end", box=None)
    table.add_column("run", overflow="fold")
    table.add_column("steps", justify="right")
    for name in compared.metrics:
        table.add_column(name, justify="right", overflow="fold")
    for group in compared.groups:
        table.add_row(group.name, group.steps, *(group.values.get(name, "") for name in compared.metrics))
    print_table(table)
    if output is not None:
        plot_curves({folder: join(folder, "metrics.jsonl") for folder in folders}, output)
        say(f"curves: {output}")


def _command(name: str) -> str:
    for command, prefixes in KINDS.items():
        if name.startswith(prefixes):
            return f"mobileclip {command} {name.removeprefix(prefixes[0])}"
    return f"mobileclip {'eval' if name == 'evaluate' else name}"

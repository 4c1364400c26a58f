"""A recipe's command line, run in this process as `mobileclip train` and its like run it."""

from __future__ import annotations

import json

from mobileclip.recipes import recipe_files, run_file
from mobileclip.serialization import from_json
from mobileclip.training import RunSpec


def run_named(name: str, *arguments: object) -> None:
    """Run a recipe by its name, with its row behind that where it has several."""
    name, *row = name.split()
    run_file(recipe_files()[name], [*row, *map(str, arguments)], program=name)


def shown(capsys, name: str, *arguments: object) -> str:
    """Return the JSON of the choices that a recipe shows, and nothing else."""
    run_named(name, *arguments, "--show")
    said = capsys.readouterr()
    assert said.err == ""
    json.loads(said.out)
    return said.out


def shown_run(capsys, name: str, *arguments: object) -> RunSpec:
    """Return the run that a training recipe shows."""
    return from_json(shown(capsys, name, *arguments), RunSpec)

"""The command line of the evaluation recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import attrs
import tyro
from command_line import reported
from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.cli.evaluate import evaluate
from mobileclip.evaluation import EvaluationSpec

from .tiny import write_tiny


@attrs.frozen(kw_only=True)
class Command:
    """What the recipe is told on the command line.

    Args:
        models: one or several: a name, a file, NAME=FILE, hf-hub:OWNER/NAME, or open_clip:MODEL/TAG.
        spec: the data sets, and how.
        beside: published models that stand in the table too; one that is evaluated by its name always does.
        report: write report.html and its tables and plots as PNG files.
        tiny: a shallow model with fitted projections on a few drawn scenes: the whole path in half a minute.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL...]")] = ("mobileclip_s2",)
    spec: Annotated[OmitArgPrefixes[EvaluationSpec], arg(name="")]
    beside: tuple[str, ...] = ()
    report: bool = False
    tiny: bool = False


def run_recipe(spec: EvaluationSpec, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the recipe.

    Args:
        spec: the defaults.
        description: the recipe's docstring; its prose is what `--help` begins with.
        arguments: the command line; None for the process's own.
    """
    prose = [part for part in (description or "").split("\n\n") if not part.startswith("Command:")]
    command = tyro.cli(Command, default=Command(spec=spec), description="\n\n".join(prose), args=arguments)
    models, chosen = command.models, command.spec
    with reported("evaluate", arguments):
        if command.tiny:
            folder = chosen.output.with_name(f"{chosen.output.name}-tiny")
            models, datasets = write_tiny(folder / "made")
            chosen = attrs.evolve(chosen, output=folder, datasets=datasets, data=None)
        evaluate(models, spec=chosen, beside=command.beside, report=command.report)

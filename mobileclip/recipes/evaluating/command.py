"""The command line of the evaluation recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.evaluation import EvaluationSpec
from mobileclip.evaluation.printing import divided, evaluate_and_print
from mobileclip.recipes.entry_point import described, opened, show
from mobileclip.recipes.evaluating.tiny import shrink
from mobileclip.terminal.help import parse


@attrs.frozen(kw_only=True)
class Command:
    """The command-line flags of the evaluation recipe.

    Args:
        models: one or several: a name, a file, NAME=FILE, LABEL=FILE, hf-hub:OWNER/NAME, or open_clip:MODEL/TAG; and
            data sets to evaluate them on, such as my_classes/.
        spec: the data sets, and how.
        beside: published models that stand in the table too; one that is evaluated by its name always does.
        report: write report.html, and its plots as PNG files.
        strict: end with status 1 in place of 0 if samples of a data set were left out.
        show: print the choices as JSON and stop; --run reads them back.
        run: a file that --show has written: its choices in place of the recipe's.
        tiny: the first samples of the data sets that are named, or a few drawn scenes without; a shallow model with
            fitted projections where none is named: the whole path in half a minute.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL...]")] = ("mobileclip_s2",)
    spec: Annotated[OmitArgPrefixes[EvaluationSpec], arg(name="")]
    beside: tuple[str, ...] = ()
    report: bool = False
    strict: bool = False
    show: bool = False
    run: Path | None = None
    tiny: bool = False


def run_recipe(spec: EvaluationSpec, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the recipe.

    Args:
        spec: the defaults.
        description: the recipe's docstring, which `--help` begins with.
        arguments: the command line; None for the process's own.
    """
    with opened("evaluating", "evaluate", description, arguments, cls=Command) as (written, rest):
        default = written or Command(spec=spec)
        command = parse(Command, rest, description=described(description), default=default)
        if command.show:
            show(attrs.evolve(command, show=False))
            return
        models, chosen = divided(command.models, command.spec)
        models = models or Command(spec=spec).models
        if command.tiny:
            models, chosen = shrink(None if models == Command(spec=spec).models else models, chosen)
        evaluate_and_print(models, chosen, beside=command.beside, report=command.report, strict=command.strict)

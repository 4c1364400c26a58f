"""The command line of the fine-tuning recipe: every choice is a flag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
from tyro.conf import OmitArgPrefixes, arg

from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.evaluation.candidates import asked
from mobileclip.processes import this_process
from mobileclip.recipes.entry_point import described, opened, show
from mobileclip.recipes.finetuning.report import summary, table, write_report
from mobileclip.recipes.finetuning.scoring import evaluate_task
from mobileclip.recipes.finetuning.tiny import shrink
from mobileclip.terminal import say
from mobileclip.terminal.help import parse
from mobileclip.training.finetuning import Results
from mobileclip.training.finetuning.run import FinetuneSpec, finetune


@attrs.frozen(kw_only=True)
class Command:
    """The command-line flags of the fine-tuning recipe.

    Args:
        spec: the choices.
        show: print the run's choices as JSON and stop; --run reads them back.
        run: a file that --show has written: its choices in place of the recipe's.
        tiny: a small model that learned drawn scenes, new shapes to learn: the whole path in a minute or two.
    """

    spec: Annotated[OmitArgPrefixes[FinetuneSpec], arg(name="")]
    show: bool = False
    run: Path | None = None
    tiny: bool = False


def run_recipe(spec: FinetuneSpec, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the recipe.

    Args:
        spec: the defaults.
        description: the recipe's docstring, which `--help` begins with.
        arguments: the command line; None for the process's own.
    """
    with opened("finetuning", "finetune", description, arguments, cls=FinetuneSpec) as (written, rest):
        default = Command(spec=written or spec)
        command = parse(Command, rest, description=described(description), default=default)
        chosen = _located(command.spec)
        chosen = _shrunk(chosen) if command.tiny and not command.show else chosen
        if command.show:
            show(chosen)
            return
        results = finetune_and_report(chosen)
    if results is not None:
        say(
            f"\n{table(results.rows)}\n\nPer cent, with intervals of 95 %. {summary(results)}\n"
            f"Report and models are in {chosen.output}."
        )


def finetune_and_report(spec: FinetuneSpec) -> Results | None:
    """Fine-tune, tell and write what came out; None in any process but the first, see `finetune`."""
    results = finetune(spec, measure=evaluate_task, on_begin=lambda before: say(f"\n{table((before,))}\n"))
    if results is not None:
        write_report(spec.output, results)
    return results


def _located(spec: FinetuneSpec) -> FinetuneSpec:
    """Return the choices with the checkpoint that `--model` names: a file, NAME=FILE, or a published model."""
    if spec.model is None or spec.checkpoint is not None:
        return spec
    given = asked(spec.model)
    if given.file is None:
        return attrs.evolve(spec, model=None, checkpoint=PRETRAINED.get(spec.model, spec.model))
    return attrs.evolve(spec, model=given.label or given.model, checkpoint=given.file)


def _shrunk(spec: FinetuneSpec) -> FinetuneSpec:
    if this_process().size > 1:
        raise ValueError("--tiny is for one process: start it without torchrun or srun")
    return shrink(spec)

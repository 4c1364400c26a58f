"""Classify, embed and find images, train, reinforce and fine-tune, evaluate, convert and export models.

`mobileclip --version` says which version this is. With `--import MODULE`, any command first imports a module of your
own, by its name or the path of its file, whose decorators register mixers, encoders, losses, tasks or targets.
"""

from __future__ import annotations

import sys

from tyro.extras import SubcommandApp

from mobileclip.cli import collections as collection_commands
from mobileclip.cli import curation, models
from mobileclip.cli import data as data_commands
from mobileclip.cli import evaluate as evaluate_commands
from mobileclip.cli import export as export_commands
from mobileclip.cli import hub as hub_commands
from mobileclip.cli import indexing as indexing_commands
from mobileclip.cli import recipes as recipe_commands
from mobileclip.extras import VERSION
from mobileclip.registry import with_parts
from mobileclip.terminal import say
from mobileclip.terminal.interruption import interruptible

_KEPT = "what was finished is kept and nothing is half written; the same command does the rest"

_MOST = 1_600

app = SubcommandApp()
app.command(recipe_commands.train)
app.command(recipe_commands.reinforce)
app.command(recipe_commands.finetune)
app.command(recipe_commands.app, name="recipes", help="List the published recipes, or copy one to change it.")
app.command(recipe_commands.runs)
app.command(models.classify)
app.command(models.embed)
app.command(indexing_commands.index)
app.command(indexing_commands.merge)
app.command(collection_commands.search)
app.command(collection_commands.dedup)
app.command(collection_commands.serve)
app.command(models.convert)
app.command(name="list")(models.list_models)
app.command(models.info)
app.command(export_commands.export)
app.command(export_commands.verify)
data_commands.app.command(curation.score)
data_commands.app.command(name="filter")(curation.filter_)
data_commands.app.command(curation.dedup)
data_commands.app.command(curation.tune_scale)
app.command(data_commands.app, name="data", help="Look into data sets, and join published ones with their images.")
app.command(hub_commands.app, name="hub", help="Write models as open_clip and timm load them too, and push them.")
app.command(evaluate_commands.app, name="eval", help="Evaluate models, and set results beside published ones.")


def main(arguments: list[str] | None = None) -> None:
    """Run the console command; errors that a person can mend are printed without a traceback.

    Args:
        arguments: what was typed behind `mobileclip`; the process's own by default.
    """
    try:
        typed = with_parts(sys.argv[1:] if arguments is None else arguments)
        if typed == ["--version"]:
            say(f"mobileclip {VERSION}")
            return
        if recipe_commands.is_run(typed):
            recipe_commands.run(typed[0], typed[1:])
            return
        with interruptible("mobileclip", _KEPT, is_program=arguments is None):
            app.cli(
                prog="mobileclip",
                args=_with_default(typed),
                description=__doc__,
            )
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; nothing is left to say to it
    except (ValueError, OSError, ImportError) as error:
        say(f"mobileclip: {_bounded(str(error))}", error=True)
        sys.exit(2)


def _with_default(arguments: list[str]) -> list[str]:
    """Return what was typed, with `run` behind an `eval` that no other command follows."""
    if arguments[:1] == ["eval"] and arguments[1:2] not in ([], ["run"], ["report"], ["-h"], ["--help"]):
        return ["eval", "run", *arguments[1:]]
    return arguments


def _bounded(message: str) -> str:
    """Return a message that a person can read: of one that quotes much, the beginning and the end."""
    return message if len(message) <= _MOST else f"{message[: _MOST // 2]} ... {message[-_MOST // 2 :]}"

"""Classify, embed and find images, train, reinforce and fine-tune, evaluate, convert and export models.

`mobileclip --version` says which version this is. With `--import MODULE`, any command first imports a module of your
own, by its name or the path of its file, whose decorators register mixers, encoders, losses, tasks or targets.
"""

from __future__ import annotations

import sys

from mobileclip.cli import collections, curation, data, evaluate, export, hub, indexing, models, recipes
from mobileclip.cli.commands import Commands
from mobileclip.extras import VERSION
from mobileclip.machine import machine_line
from mobileclip.registry import with_parts
from mobileclip.terminal import has_reader, say
from mobileclip.terminal.interruption import interruptible
from mobileclip.terminal.streams import ensure_streams, give_up_output

_KEPT = "what was finished is kept and nothing is half written; the same command does the rest"

_MOST = 1_600

COMMANDS = Commands(
    __doc__,
    {
        "train": recipes.train,
        "reinforce": recipes.reinforce,
        "finetune": recipes.finetune,
        "recipes": Commands(
            "List the published recipes, or copy one to change it.", {"ls": recipes.list_recipes, "cp": recipes.copy}
        ),
        "runs": recipes.runs,
        "classify": models.classify,
        "embed": models.embed,
        "index": indexing.index,
        "merge": indexing.merge,
        "search": collections.search,
        "dedup": collections.dedup,
        "serve": collections.serve,
        "convert": models.convert,
        "list": models.list_models,
        "info": models.info,
        "check-weights": models.check_weights,
        "export": export.export,
        "verify": export.verify,
        "data": Commands(
            "Look into data sets, and join published ones with their images.",
            {
                "join": data.join,
                "urls": data.urls,
                "inspect": data.inspect,
                "count": data.count,
                "verify": data.verify,
                "score": curation.score,
                "filter": curation.filter_,
                "dedup": curation.dedup,
                "tune-scale": curation.tune_scale,
            },
        ),
        "hub": Commands(
            "Write models as open_clip and timm load them too, and push them.", {"save": hub.save, "push": hub.push}
        ),
        "eval": Commands(
            "Evaluate models, and set results beside published ones; `run` may be left out.",
            {"run": evaluate.evaluate, "report": evaluate.report, "orders": evaluate.orders},
        ),
    },
)


def main(arguments: list[str] | None = None) -> None:
    """Run the console command; errors that a person can mend are printed without a traceback.

    Args:
        arguments: what was typed behind `mobileclip`; the process's own by default.
    """
    ensure_streams()
    try:
        typed = with_parts(sys.argv[1:] if arguments is None else arguments)
        if typed == ["--version"]:
            say(f"mobileclip {VERSION}")
            return
        if recipes.is_run(typed):
            recipes.run(typed[0], typed[1:])
            return
        with interruptible("mobileclip", _KEPT, is_program=arguments is None):
            COMMANDS.run("mobileclip", _with_default(typed))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader():
            give_up_output()
            return
        line = machine_line(error)
        if line is None and not isinstance(error, (ValueError, OSError, ImportError)):
            raise
        say(f"mobileclip: {_bounded(line or str(error))}", error=True)
        sys.exit(2)


def _with_default(arguments: list[str]) -> list[str]:
    """Return what was typed, with `run` behind an `eval` that no other command follows."""
    if arguments[:1] == ["eval"] and arguments[1:2] not in ([], ["run"], ["report"], ["orders"], ["-h"], ["--help"]):
        return ["eval", "run", *arguments[1:]]
    return arguments


def _bounded(message: str) -> str:
    """Return a message that a person can read: of one that quotes much, the beginning and the end."""
    return message if len(message) <= _MOST else f"{message[: _MOST // 2]} ... {message[-_MOST // 2 :]}"

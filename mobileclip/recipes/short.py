"""The common flags of recipes for `--help`, a line each, without importing torch.

A line has the names of a flag, its value, the field if its name is longer, and a description.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from mobileclip.terminal.help import format_help

_COMMON = """
--tiny                                                    try the whole path on a few drawn samples, in a minute
--show                                                    print all choices as JSON, which a recipe reads back
"""
_TRAINED = """
-o, --output FOLDER            output                     of all that it makes; a second run goes on there
--steps INT                    training.schedule.total_steps  length of the run
--learning-rate FLOAT          training.schedule.peak     peak of the learning rate
"""
_DEVICE = "--device NAME                  device                     cuda:1, mps or cpu; by default the best there is\n"
LINES: Mapping[str, str] = {
    "RunSpec": f"""
--data SHARDS                  data.shards                to train on; once for each. Of classes, a folder of folders
--plain                                                   pairs as they are: real captions, no teachers
--validation DATA                                         held out, and measured between epochs
--evaluate DATA                                           data sets to evaluate on between epochs
{_TRAINED}
--batch-size INT               data.batch_size            samples of a step, all processes together
--micro-batch INT              training.memory.micro_batch  samples that a tower of a process encodes at once
--recompute                    training.memory.recompute  keep less of the forward pass, compute it again
-j, --num-workers INT          data.num_workers           processes that read, decode and augment
--precision NAME               training.precision         float32, bfloat16 or float16
--initial-weights FILE                                    a checkpoint to start from
{_DEVICE}{_COMMON}""",
    "ReinforcementSpec": f"""
--data DATA                                               shards, a .jsonl or table, or a folder of images
-o, --output FOLDER            output                     of the reinforced shards; a second run goes on
--step NAME                                               captions, embeddings, or both
--num-augmentations INT                                   that are stored for each image
--batch-size INT                                          samples that are encoded at once
-j, --num-workers INT          num_workers                processes; by default one for each GPU
--engine NAME                                             local, or ray for a cluster
--status                                                  how far the run in the output is
--dry-run                                                 measure a little, and say what all of it takes
{_COMMON}""",
    "FinetuneSpec": f"""
-m, --model FILE               model                      what is fine-tuned; or a name, NAME=FILE, hf-hub:...
--data DATA                                               a folder of classes, captions, .jsonl or shards
--test DATA                                               to test on; by default a part is held out
--retention-tasks DATA                                          what it could do before, measured too; once for each
-o, --output FOLDER            output                     of all that it makes; a second run goes on there
--epochs INT                                              passes over the pictures
--batch-size INT                                          pictures of a step, all processes together
--learning-rate FLOAT                                     peak of the learning rate
-j, --num-workers INT          num_workers                processes that read, decode and augment
--precision NAME                                          float32 or bfloat16
{_DEVICE}{_COMMON}""",
    "DistilSpec": f"""
-m, --model FILE               model                      the teacher; or a name, NAME=FILE, open_clip:...
--data TEXTS                                              lines, tables of pairs, or LANGUAGE=FILE; once for each
--shares LANG=NUM                                         of every batch by language, such as de=2
--kind NAME                                               transformer, mct, or teacher: its own, cut
--context-length INT                                      ids per text, 3 to 77
--depth INT                                               layers; 0 makes a bag of tokens
--tokenizer FILE                                          a tokenizer.json; the teacher's own without
--relation-weight FLOAT        training.loss.relation_weight  of similarities within the batch
{_TRAINED}{_DEVICE}{_COMMON}""",
    "EvaluationSpec": f"""
--data FOLDER                                             that holds the data sets; streamed without it
--datasets DATA                                           data sets of your own, or some of the suites'
--suite NAME                                              quick, imagenet, full, ...
-o, --output FOLDER            output                     of the results; a second run goes on there
--batch-size INT                                          images and texts that are encoded at once
-j, --num-workers INT          num_threads                threads that read and decode
--report                                                  write report.html with plots
{_DEVICE}{_COMMON}""",
}
"""By the class of a recipe's choices."""

_ASKING = frozenset(("-h", "--help"))
ASKING_ALL, PLAIN = "--help-all", "--plain"
_WIDTH = 24


@attrs.frozen
class Short:
    """A flag of the short help.

    Args:
        names: names of the flag.
        value: placeholder of its value; empty for a switch.
        field: the field, if its name is longer; otherwise empty.
        text: description.
    """

    names: tuple[str, ...]
    value: str
    field: str
    text: str


def shorts(kind: str) -> list[Short]:
    """Return the short flags of a recipe by the name of its spec's class."""
    found = []
    for line in filter(None, LINES[kind].splitlines()):
        head, *middle, text = re.split(r"  +", line)
        *names, last = head.split(", ")
        name, _, value = last.partition(" ")
        found.append(Short((*names, name), value, middle[0] if middle else "", text))
    return found


def kind_of(file: Path) -> tuple[str, list[str]] | None:
    """Return the spec class and variants of a recipe from the text of its file; None if not found."""
    text = file.read_text(encoding="utf-8")
    found = re.search(r"^(?:RUN: |ROWS: dict\[str, )(\w+)\]? =", text, re.MULTILINE)
    call = re.search(r"run_recipe\((?:RUN|ROWS)(.*)\)", text)
    variants = re.findall(r"(\w+)=", call[1]) if call else []
    return (found[1], variants) if found and found[1] in LINES else None


def wants_short_help(arguments: object) -> bool:
    """Return whether a command line asks for the short help."""
    return not _ASKING.isdisjoint(arguments)  # type: ignore[arg-type]


def brief_help(kind: str, program: str, rows: Mapping[str, str] | None = None, variants: Collection[str] = ()) -> str:
    """Return the short help of a recipe, below its header.

    Args:
        kind: the name of its spec's class.
        program: the command before the flags.
        rows: titles of the recipe's runs, if there are several.
        variants: further words that change the spec.
    """
    others = " [MODEL...]" if kind == "EvaluationSpec" else ""
    words = f"{' ROW' if rows else ''}{''.join(f' [{one}]' for one in variants)} [RUN.json]{others}"
    lines = [f"usage: {program}{words} [FLAGS]", ""]
    lines += [format_help(title, heading=f"  {name:{_WIDTH}}  ") for name, title in (rows or {}).items()]
    lines += [""] if rows else []
    lines += [f"  {_head(one):{_WIDTH}}  {one.text}" for one in shorts(kind)]
    return "\n".join([*lines, "", f"`{program} {ASKING_ALL}` lists all flags; `--quiet` shows no progress."])


def _head(flag: Short) -> str:
    return f"{', '.join(flag.names)} {flag.value}"


def program() -> str:
    """Return the program as typed, without flags."""
    return f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else sys.argv[0]


def retyped_command(*flags: str) -> str:
    """Return the typed command with its row and only these flags, in backticks."""
    row = [one for one in sys.argv[1:2] if not one.startswith("-") and not one.endswith(".json")]
    return f"`{' '.join((program(), *row, *flags))}`"

"""The common flags of recipes for `--help`, one line each, without importing torch.

A line has the names of a flag, a placeholder of the value, the spec's field if the flag has a shorter name, and a
description.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from mobileclip.terminal.help import format_help

_COMMON = """
--tiny                                                    try a small run on a few drawn samples, in a minute
--show                                                    print all options as JSON, which a recipe can read
"""
_TRAINED = """
-o, --output FOLDER            output                     output folder; a second run resumes
--steps INT                    training.schedule.total_steps  length of the run
--learning-rate FLOAT          training.schedule.peak     peak learning rate
"""
_DEVICE = "--device NAME                  device                     cuda:1, mps or cpu; by default the best device\n"
LINES: Mapping[str, str] = {
    "RunSpec": f"""
--data SHARDS                  data.shards                training data: shards, or a folder per class
--plain                                                   train on real captions only, without teachers
--validation DATA                                         held-out data for evaluation during training
--evaluate DATA                                           data sets for evaluation during training
{_TRAINED}
--batch-size INT               data.batch_size            samples per step, over all processes
--micro-batch INT              training.memory.micro_batch  samples per forward pass of a tower
--recompute                    training.memory.recompute  activation checkpointing: less memory, more time
-j, --num-workers INT          data.num_workers           processes that read, decode and augment
--precision NAME               training.precision         float32, bfloat16 or float16
--initial-weights FILE                                    checkpoint to start from
{_DEVICE}{_COMMON}""",
    "ReinforcementSpec": f"""
--data DATA                                               shards, a .jsonl file or table, or a folder of images
-o, --output FOLDER            output                     output folder of the shards; a second run resumes
--step NAME                                               captions, embeddings, or both
--num-augmentations INT                                   augmentations to store per image
--batch-size INT                                          samples per batch
-j, --num-workers INT          num_workers                processes; by default one per GPU
--engine NAME                                             local, or ray for a cluster
--status                                                  show the progress of the run in the output
--dry-run                                                 measure a few samples, and print the estimated cost
{_COMMON}""",
    "FinetuneSpec": f"""
-m, --model FILE               model                      checkpoint to fine-tune; or a name, NAME=FILE, hf-hub:...
--data DATA                                               a folder of classes or captions, .jsonl or shards
--test DATA                                               test data; by default a held-out part of --data
--retention-tasks DATA                                          data of old tasks, to measure forgetting
-o, --output FOLDER            output                     output folder; a second run resumes
--epochs INT                                              passes over the images
--batch-size INT                                          images per step, over all processes
--learning-rate FLOAT                                     peak learning rate
-j, --num-workers INT          num_workers                processes that read, decode and augment
--precision NAME                                          float32 or bfloat16
{_DEVICE}{_COMMON}""",
    "DistilSpec": f"""
-m, --model FILE               model                      teacher: a checkpoint, a name, NAME=FILE, open_clip:...
--data TEXTS                                              text files or tables, or LANGUAGE=FILE
--shares LANG=NUM                                         share of each language in a batch, such as de=2
--kind NAME                                               transformer, mct, or teacher (its own tower, truncated)
--context-length INT                                      ids per text, 3 to 77
--depth INT                                               number of layers; 0 for a bag of tokens
--tokenizer FILE                                          a tokenizer.json; by default the teacher's tokenizer
--relation-weight FLOAT        training.loss.relation_weight  weight of the loss on similarities in the batch
{_TRAINED}{_DEVICE}{_COMMON}""",
    "EvaluationSpec": f"""
--data FOLDER                                             folder of the data sets; by default, data is streamed
--datasets DATA                                           your own data sets, or data sets of the suites
--suite NAME                                              quick, imagenet, full, ...
-o, --output FOLDER            output                     output folder of the results; a second run resumes
--batch-size INT                                          images and texts per batch
-j, --num-workers INT          num_threads                threads that read and decode images
--report                                                  write report.html with plots
{_DEVICE}{_COMMON}""",
}
"""Help lines by the name of a recipe's spec class."""

_ASKING = frozenset(("-h", "--help"))
ASKING_ALL, PLAIN = "--help-all", "--plain"
_WIDTH = 24


@attrs.frozen
class ShortFlag:
    """A flag of the short help.

    Args:
        names: long name of the flag and, if any, the short name, with dashes.
        value: placeholder of the flag's value; empty for a switch.
        field: path of the spec's field, such as `data.shards`, if the flag has a shorter name; empty otherwise.
        text: description of the flag in one line.
    """

    names: tuple[str, ...]
    value: str
    field: str
    text: str


def shorts(kind: str) -> list[ShortFlag]:
    """Return the short flags of a recipe, given the name of its spec class."""
    found = []
    for line in filter(None, LINES[kind].splitlines()):
        head, *middle, text = re.split(r"  +", line)
        *names, last = head.split(", ")
        name, _, value = last.partition(" ")
        found.append(ShortFlag((*names, name), value, middle[0] if middle else "", text))
    return found


def kind_of(file: Path) -> tuple[str, list[str]] | None:
    """Return the names of a recipe's spec class and variants, read from the file; None if the file has no run."""
    text = file.read_text(encoding="utf-8")
    found = re.search(r"^(?:RUN: |ROWS: dict\[str, )(\w+)\]? =", text, re.MULTILINE)
    call = re.search(r"run_recipe\((?:RUN|ROWS)(.*)\)", text)
    variants = re.findall(r"(\w+)=", call[1]) if call else []
    return (found[1], variants) if found and found[1] in LINES else None


def wants_short_help(arguments: object) -> bool:
    """Return whether a command line asks for the short help."""
    return not _ASKING.isdisjoint(arguments)  # type: ignore[arg-type]


def brief_help(kind: str, program: str, rows: Mapping[str, str] | None = None, variants: Collection[str] = ()) -> str:
    """Return the short help of a recipe, without its header.

    Args:
        kind: name of the recipe's spec class.
        program: command that starts the recipe, without flags.
        rows: titles of the recipe's runs by name; None for a single run.
        variants: words on the command line that change the spec, such as `released`.
    """
    others = " [MODEL...]" if kind == "EvaluationSpec" else ""
    words = f"{' ROW' if rows else ''}{''.join(f' [{one}]' for one in variants)} [RUN.json]{others}"
    lines = [f"usage: {program}{words} [FLAGS]", ""]
    lines += [format_help(title, heading=f"  {name:{_WIDTH}}  ") for name, title in (rows or {}).items()]
    lines += [""] if rows else []
    lines += [f"  {_head(one):{_WIDTH}}  {one.text}" for one in shorts(kind)]
    return "\n".join([*lines, "", f"`{program} {ASKING_ALL}` lists all flags; `--quiet` shows no progress."])


def _head(flag: ShortFlag) -> str:
    return f"{', '.join(flag.names)} {flag.value}"


def program() -> str:
    """Return the program as typed, without flags."""
    return f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else sys.argv[0]


def retyped_command(*flags: str) -> str:
    """Return the typed command with its row and only the given flags, in backticks."""
    row = [one for one in sys.argv[1:2] if not one.startswith("-") and not one.endswith(".json")]
    return f"`{' '.join((program(), *row, *flags))}`"

"""The flags of recipes that people set: what `--help` shows, in a line each; `--help-all` shows the others, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from mobileclip.terminal.common import with_names
from mobileclip.terminal.help import laid_out

_ASKING = frozenset(("-h", "--help"))
ASKING_ALL = "--help-all"
_WIDTH = 24


@attrs.frozen
class Flag:
    """A flag, as the short help shows it.

    Args:
        names: as they are typed, apart by commas.
        value: what stands for its value; nothing of a switch.
        text: what it is for, in a line.
        full: the flag that it is among all of them, where that has another name.
    """

    names: str
    value: str
    text: str
    full: str = ""


_OUTPUT = Flag("-o, --output", "FOLDER", "of all that it makes; a second run goes on there")
_DEVICE = Flag("--device", "NAME", "cuda:1, mps or cpu; by default the best there is")
_STARTING = Flag("--initial-weights", "FILE", "a checkpoint to start from")
_WORKERS = Flag("-j, --num-workers", "INT", "processes that read, decode and augment")
_TINY = Flag("--tiny", "", "try the whole path on a few samples, in a minute")
_RATE = Flag("--learning-rate", "FLOAT", "peak of the learning rate")

_TRAINED = (
    _OUTPUT,
    Flag("--steps", "INT", "length of the run", "--training.schedule.total-steps"),
    Flag("--batch-size", "INT", "samples of a step, all processes together", "--pipeline.batch-size"),
    Flag("--micro-batch-size", "INT", "samples that a process takes at once", "--training.micro-batch-size"),
    attrs.evolve(_RATE, full="--training.schedule.peak"),
    attrs.evolve(_WORKERS, full="--pipeline.num-workers"),
    Flag("--precision", "NAME", "float32, bfloat16 or float16", "--training.precision"),
    _DEVICE,
    _STARTING,
    _TINY,
)

FLAGS: Mapping[str, Sequence[Flag]] = {
    "training": (
        Flag("--data", "SHARDS...", "reinforced shards: paths, patterns or URLs"),
        Flag("--plain", "", "pairs as they are: real captions, no teachers"),
        Flag("--validation", "DATA...", "held-out pairs; recall on them is measured"),
        Flag("--evaluate", "DATA...", "data sets to evaluate on between epochs"),
        *_TRAINED,
    ),
    "classifying": (
        Flag("--data", "SHARDS...", "of images and classes; or a folder of folders"),
        Flag("--validation", "SHARDS...", "held-out images; top-1 and top-5 are measured"),
        *_TRAINED,
    ),
    "captioning": (
        Flag("--data", "DATA...", "image-text shards; or a .jsonl, table or folder"),
        Flag("--validation", "DATA...", "held-out pairs; nats per id are measured"),
        *_TRAINED,
    ),
    "reinforcing": (
        Flag("--data", "DATA", "shards, a .jsonl or table, or a folder of images"),
        attrs.evolve(_OUTPUT, text="of the reinforced shards; a second run goes on"),
        Flag("--step", "NAME", "captions, embeddings, or both"),
        Flag("--num-augmentations", "INT", "that are stored for each image"),
        Flag("--batch-size", "INT", "samples that are encoded at once"),
        attrs.evolve(_WORKERS, text="processes; by default one for each GPU"),
        Flag("--engine", "NAME", "local, or ray for a cluster"),
        Flag("--status", "", "how far the run in the output is"),
        Flag("--dry-run", "", "measure a little, and say what all of it takes"),
        Flag("--strict", "", "status 1 where a shard was set aside"),
        _TINY,
    ),
    "finetuning": (
        Flag("-m, --model", "FILE", "what is fine-tuned; or a name, NAME=FILE, hf-hub:..."),
        Flag("--data", "DATA", "a folder of classes, captions, .jsonl or shards"),
        Flag("--test", "DATA", "to test on; by default a part is held out"),
        Flag("--old-tasks", "DATA...", "what it could do before, measured too"),
        _OUTPUT,
        Flag("--epochs", "INT", "passes over the pictures"),
        Flag("--batch-size", "INT", "pictures of a step, all processes together"),
        _RATE,
        _WORKERS,
        Flag("--precision", "NAME", "float32 or bfloat16"),
        _DEVICE,
        _TINY,
    ),
    "distilling": (
        Flag("-m, --model", "FILE", "the teacher; or a name, NAME=FILE, open_clip:..."),
        Flag("--data", "TEXTS...", "lines, tables of pairs, or LANGUAGE=FILE"),
        Flag("--shares", "LANG=NUM...", "of every batch by language, such as de=2 en=1"),
        _OUTPUT,
        Flag("--kind", "NAME", "transformer, mct, or teacher: its own, cut"),
        Flag("--context-length", "INT", "ids per text, 3 to 77"),
        Flag("--depth", "INT", "layers; 0 makes a bag of tokens"),
        Flag("--tokenizer", "FILE", "a tokenizer.json; the teacher's own without"),
        Flag("--prune-vocabulary", "", "leave out tokens that the texts never use"),
        Flag("--relation-weight", "FLOAT", "of similarities within the batch", "--training.loss.relation-weight"),
        Flag("--steps", "INT", "length of the run", "--training.schedule.total-steps"),
        attrs.evolve(_RATE, full="--training.schedule.peak"),
        _DEVICE,
        attrs.evolve(_TINY, text="try the whole path on a few texts, in seconds"),
    ),
    "evaluating": (
        Flag("--data", "FOLDER", "that holds the data sets; streamed without it"),
        Flag("--datasets", "DATA...", "data sets of your own, or some of the suites'"),
        Flag("--suite", "NAME", "quick, imagenet, full, ..."),
        attrs.evolve(_OUTPUT, text="of the results; a second run goes on there"),
        Flag("--batch-size", "INT", "images and texts that are encoded at once"),
        Flag("-j, --num-workers", "INT", "threads that read and decode", "--num-threads"),
        _DEVICE,
        Flag("--report", "", "write report.html, and what models disagree on"),
        Flag("--strict", "", "status 1 where samples were left out"),
        _TINY,
    ),
}
"""The flags of the short help, by kind of recipe."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "reinforcing": {"--source": "--data"},
    "finetuning": {"-c": "--checkpoint"},
}
"""Names that flags had before, which work through 0.1, to those that they have now, by kind."""


def canonical(kind: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line with the full name of each flag, and `--help-all` in one word.

    Args:
        kind: of the recipe, a key of `FLAGS`.
        arguments: as they were typed.
    """
    full = dict(RENAMED.get(kind, {}))
    for flag in FLAGS[kind]:
        names = flag.names.split(", ")
        full |= dict.fromkeys(names, flag.full or names[-1])
    found = with_names(arguments, full)
    for place in range(len(found) - 1, 0, -1):
        if found[place] == "all" and found[place - 1] in _ASKING:
            found[place - 1 : place + 1] = [ASKING_ALL]
    return found


def asks_briefly(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for the short help."""
    return not _ASKING.isdisjoint(arguments)


def brief_help(kind: str, program: str, rows: Mapping[str, str] | None = None) -> str:
    """Return the short help of a recipe, below its header.

    Args:
        kind: of the recipe, a key of `FLAGS`.
        program: what is typed before the flags.
        rows: the recipe's runs to their titles, where it has several.
    """
    others = {"evaluating": " [MODEL...]"}.get(kind, "")
    lines = [f"usage: {program}{' ROW' if rows else others} [FLAGS]", ""]
    lines += [laid_out(title, heading=f"  {name:{_WIDTH}}  ") for name, title in (rows or {}).items()]
    lines += [""] if rows else []
    lines += [f"  {f'{flag.names} {flag.value}':{_WIDTH}}  {flag.text}" for flag in FLAGS[kind]]
    lines += ["", f"`{program} {ASKING_ALL}` lists all flags."]
    return "\n".join([*lines, "`--show` prints all choices, `--run` reads them, `--quiet` shows no progress."])

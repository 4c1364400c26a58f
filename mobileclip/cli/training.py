"""`mobileclip train | reinforce | finetune | recipes | runs | tokenizer`: recipes and their tools.

`parsed_as` in `mobileclip.recipes.flags` turns the fields of a recipe's spec into flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from mobileclip.cli.arguments import require_file
from mobileclip.recipes.files import KINDS, copy_recipe, find_recipe, header_of, recipe_files, run_file
from mobileclip.storage import make_directory_of, require_output, write_text
from mobileclip.terminal import print_table, say
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from mobileclip.data import SkipReport

Recipe = Annotated[Positional[str], arg(metavar="NAME|RECIPE.py [FLAGS]")]
Runs = Annotated[Positional[tuple[str, ...]], arg(metavar="RUN...")]
_TEXTS = "a file of texts: lines, or a .jsonl, .csv, .tsv or .parquet table"
Texts = Annotated[Positional[tuple[str, ...]], arg(metavar="TEXTS...")]


def train(recipe: Recipe, /) -> None:
    """Train with a recipe. `mobileclip recipes ls` lists the recipes; `mobileclip train NAME --help` lists the flags.

    mobileclip train s2 --tiny

    mobileclip train s2 --data 'joined/{00..64}/{00000000..00000999}.tar' 'joined/65/{00000000..00000535}.tar'
    torchrun --nproc-per-node 8 -m mobileclip.cli train my_recipe.py --data 'mine/{000..127}.tar'

    Args:
        recipe: a published recipe, such as s2 or mobileclip2_s4, or your own file; then the recipe's flags.
    """
    run("train", [recipe])


def reinforce(recipe: Recipe, /) -> None:
    """Reinforce a data set with a recipe: add synthetic captions and teacher embeddings to its pairs.

    mobileclip reinforce datacompdr12m --tiny

    mobileclip reinforce datacompdr12m --data DataComp-12M --output DataCompDR-12M --dry-run

    Args:
        recipe: a published recipe, such as datacompdr12m, or your own file; then the recipe's flags.
    """
    run("reinforce", [recipe])


def finetune() -> None:
    """Fine-tune a checkpoint on your own images, and measure how much the model forgets; `--help` lists all flags.

    mobileclip finetune --tiny

    mobileclip finetune -m mobileclip_s2.pt --data flowers/ --retention-tasks imagenet-val/
    """
    run("finetune", [])


def is_run(arguments: Sequence[str]) -> bool:
    """Return whether the arguments run a recipe, with the recipe's own flags."""
    return arguments[:1] == ["finetune"] or (
        bool(arguments) and arguments[0] in KINDS and arguments[1:2] not in ([], ["-h"], ["--help"])
    )


def run(command: str, arguments: Sequence[str]) -> None:
    """Run a recipe.

    Args:
        command: `train`, `reinforce` or `finetune`.
        arguments: the recipe's name, except for `finetune`; then the recipe's flags.

    Raises:
        ValueError: if there is no recipe with this name.
    """
    if command == "finetune":
        run_file(find_recipe(command), arguments, program="mobileclip finetune")
        return
    name, *rest = arguments
    run_file(find_recipe(name, command), rest, program=f"mobileclip {command} {name}")


def list_recipes() -> None:
    """Print the command and the title of each published recipe."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("command", no_wrap=True)
    table.add_column("title", overflow="fold")
    for name, file in recipe_files().items():
        table.add_row(_command(name), header_of(file).title)
    print_table(table)
    say("Each recipe has --help. All except eval have --tiny, which runs all steps on tiny data in a minute or two.")


def copy(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE|FOLDER")] = Path(),
    overwrite: bool = False,
) -> None:
    """Copy a recipe to edit it; the copy runs in any folder and under any name.

    mobileclip recipes cp train_s2 -o my_s2.py
    python my_s2.py --tiny

    Args:
        name: a name from `mobileclip recipes ls`, or the file's name: s2 or train_s2.
        output: file name of the copy, or a folder for the copy; by default the working folder.
        overwrite: replace an existing file.
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
    """Compare training runs: differing options, final metrics, and a plot of their curves.

    mobileclip runs outputs/train_s2 outputs/train_s2-wide -o curves.png

    Runs that differ only in their seeds form one row, with mean and standard deviation.

    Args:
        folders: output folders of finished or unfinished training runs, as paths, or URLs such as s3://bucket/run.
        output: a plot of the curves, one panel per metric.
        overwrite: replace an existing plot.
    """
    from rich.table import Table

    from mobileclip.storage import join, require_output
    from mobileclip.training.records import compare_runs, plot_curves

    if output is not None:
        require_output(output, overwrite=overwrite, suffixes=(".png",))
    compared = compare_runs(folders)
    if compared.choices:
        table = Table(title="Different options", box=None)
        table.add_column("option", overflow="fold")
        for group in compared.groups:
            table.add_column(group.name, overflow="fold")
        for name, values in compared.choices.items():
            table.add_row(name, *values)
        print_table(table)
    table = Table(title="Final metrics", box=None)
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


def train_tokenizer(
    texts: Texts,
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE.json")],
    vocab_size: int = 16_384,
    kind: Literal["bpe", "unigram"] = "bpe",
    text_column: str = "text",
    lowercase: bool = True,
    overwrite: bool = False,
) -> None:
    """Train a tokenizer on texts of a language, and write a tokenizer.json for a text tower.

    mobileclip tokenizer train german.txt pairs.tsv -o tokenizer.json --vocab-size 8000

    Args:
        texts: files with one text per line, or tables (.jsonl, .csv, .tsv and .parquet).
        output: the file to write.
        vocab_size: maximum number of tokens, including special tokens.
        kind: bpe merges the most frequent pairs of bytes (deterministic); unigram keeps the most probable subwords,
            like sentencepiece.
        text_column: name of the text column in tables.
        lowercase: convert all texts to lower case.
        overwrite: replace an existing file.
    """
    from mobileclip.data import SkipReport, train_tokenizer as trained_tokenizer

    _require(texts)
    require_output(output, overwrite=overwrite, suffixes=(".json",))
    report = SkipReport()
    content = trained_tokenizer(
        _read(texts, text_column, report), vocab_size=vocab_size, kind=kind, lowercase=lowercase
    )
    _write(output, content)
    say(f"wrote {output}: a tokenizer of {report.num_read:,} texts")
    say(f"to distil a text tower for this tokenizer: mobileclip train distil_text --tokenizer {output} ...")
    conclude(left_out=report.num_skipped, done=report.num_read)


def _require(texts: Sequence[str]) -> None:
    if not texts:
        raise ValueError(f"no texts; expected {_TEXTS}")
    for path in texts:
        require_file(path, _TEXTS)


def _read(paths: Sequence[str], column: str, report: SkipReport) -> Iterator[str]:
    """Yield the texts of files, and count unusable rows."""
    from mobileclip.data import BadSampleError, Skip
    from mobileclip.datasets.sources import TextColumns, read_text_pairs

    for path in paths:
        for number, pair in enumerate(read_text_pairs(path, TextColumns(text=column)), 1):
            if isinstance(pair, BadSampleError):
                report.add(Skip(reason=pair.reason, key=f"text {number}", shard=path, detail=pair.detail))
            else:
                report.num_read += 1
                yield pair.text


def _write(path: Path, content: str) -> None:
    make_directory_of(path)
    write_text(path, content)

"""`mobileclip tokenizer train | prune`: train or shrink a tokenizer on your own texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_checkpoint, require_file
from mobileclip.cli.models import split
from mobileclip.storage import is_same, make_directory_of, require_output, write_text
from mobileclip.terminal import say
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from mobileclip.data import SkipReport

_TEXTS = "a file of texts: lines, or a .jsonl, .csv, .tsv or .parquet table"
Texts = Annotated[Positional[tuple[str, ...]], arg(metavar="TEXTS...")]


def train(
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
    """Train a tokenizer on texts, for a text tower of their language: a tokenizer.json.

    mobileclip tokenizer train german.txt pairs.tsv -o tokenizer.json --vocab-size 8000

    Args:
        texts: files of lines, or tables: .jsonl, .csv, .tsv and .parquet.
        output: the file to write.
        vocab_size: number of tokens at most, special ones included.
        kind: bpe joins the most frequent pairs of bytes, and is the same every time; unigram has the most probable
            subwords, as sentencepiece.
        text_column: column of tables that holds the texts.
        lowercase: turn all texts into lower case.
        overwrite: replace a file that is there.
    """
    from mobileclip.data import SkipReport, train_tokenizer

    _require(texts)
    require_output(output, overwrite=overwrite, suffixes=(".json",))
    report = SkipReport()
    content = train_tokenizer(_read(texts, text_column, report), vocab_size=vocab_size, kind=kind, lowercase=lowercase)
    _write(output, content)
    say(f"wrote {output}: a tokenizer of {report.num_read:,} texts")
    say(f"to distil a text tower that reads it: mobileclip train distil_text --tokenizer {output} ...")
    conclude(left_out=report.num_skipped, done=report.num_read)


def prune(
    model: Annotated[Positional[str], arg(metavar="FILE|NAME=FILE|TOKENIZER.json")],
    texts: Texts,
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE")],
    text_column: str = "text",
    context_length: int | None = None,
    overwrite: bool = False,
) -> None:
    """Leave out of a model's vocabulary what texts never use; the embeddings of these stay the same, to the bit.

    mobileclip tokenizer prune mobileclip_s0.pt captions.txt -o small.safetensors

    Most of a small text tower is its vocabulary. Bytes and letters stay, so that every other text can be read, by
    shorter tokens. The smaller tokenizer is in the model's file.

    Args:
        model: a checkpoint in any known layout, whole or a text tower, with NAME= before it where it does not say what
            it holds; or a tokenizer.json alone.
        texts: files of lines, or tables: .jsonl, .csv, .tsv and .parquet.
        output: the file to write: *.safetensors, or *.json of a tokenizer.
        text_column: column of tables that holds the texts.
        context_length: ids per text, where fewer than the model's own; see load_model in mobileclip.encoders.
        overwrite: replace a file that is there.
    """
    from mobileclip.data import SkipReport
    from mobileclip.encoders.checkpoints.hub import local_checkpoint

    _require(texts)
    name, file = split(model)
    source = file or name
    is_tokenizer = source.endswith(".json")
    require_output(output, overwrite=overwrite, suffixes=(".json" if is_tokenizer else ".safetensors",))
    if is_tokenizer:
        require_file(source, "a tokenizer.json")
    else:
        require_checkpoint(source)
    if is_same(source if is_tokenizer else local_checkpoint(source), output):
        raise ValueError(f"{source} would be replaced by what is made of it; choose another name to write to")
    report = SkipReport()
    read = _read(texts, text_column, report)
    if is_tokenizer:
        before, after, num_other = _pruned_tokenizer(source, read, output)
    else:
        before, after, num_other = _pruned_model(source, name if file else None, context_length, read, output)
    say(f"wrote {output}: {after:,} of {before:,} tokens, for {report.num_read:,} texts")
    if num_other:
        say(f"{num_other:,} of these have other tokens than before: their letters are broken, and are not repaired now")
    conclude(left_out=report.num_skipped, done=report.num_read)


def _pruned_tokenizer(source: str, texts: Iterator[str], output: Path) -> tuple[int, int, int]:
    """Write a smaller tokenizer; the tokens before and after, and how many texts have other ones."""
    from mobileclip.data import read_text_input
    from mobileclip.data.text import prune_tokens

    before = read_text_input(source)
    found = prune_tokens(texts, before)
    assert found.text.tokenizer is not None, "it is a tokenizer.json"
    _write(output, found.text.tokenizer.content or "")
    return before.vocab_size, found.text.vocab_size, found.num_other


def _pruned_model(
    source: str, name: str | None, context_length: int | None, texts: Iterator[str], output: Path
) -> tuple[int, int, int]:
    """Write a model with a smaller vocabulary; the tokens before and after, and how many texts have other ones."""
    from mobileclip.encoders import DualEncoder, save_model
    from mobileclip.encoders.checkpoints import read_checkpoint
    from mobileclip.encoders.families import text_spec
    from mobileclip.inference import prune_vocabulary
    from mobileclip.inference.text_towers import converted_from

    stored = read_checkpoint(source, name).of_size(context_length=context_length)
    model = stored.build()
    tower = model.text_encoder if isinstance(model, DualEncoder) else model
    pruned = prune_vocabulary(texts, tower)
    before = text_spec(tower).input.vocab_size
    if isinstance(model, DualEncoder):
        model.text_encoder = pruned.tower
    else:
        model = pruned.tower
    model.taught = converted_from(source, name, stored)  # type: ignore[assignment]
    kinds = {tensor.dtype for tensor in stored.tensors.values() if tensor.is_floating_point()}
    save_model(model.to(kinds.pop()) if len(kinds) == 1 else model, output)  # as precise as it was
    return before, len(pruned.ids), pruned.num_other


def _require(texts: Sequence[str]) -> None:
    if not texts:
        raise ValueError(f"no texts are given; expected {_TEXTS}")
    for path in texts:
        require_file(path, _TEXTS)


def _read(paths: Sequence[str], column: str, report: SkipReport) -> Iterator[str]:
    """Yield the texts of files; what cannot be used is counted."""
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

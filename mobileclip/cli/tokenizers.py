"""`mobileclip tokenizer train`: a tokenizer of texts of your own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_file
from mobileclip.storage import make_directory_of, require_output, write_text
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

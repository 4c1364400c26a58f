"""Storage of a teacher's text embeddings, for the distillation of text towers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.data.text.stored import CARD, TextsCard, part_name, part_tensors, write_texts_card
from mobileclip.datasets.sources.text_pairs import TextPair
from mobileclip.encoders.checkpoints.saving import write_tensors
from mobileclip.inference.encoding import encode_each
from mobileclip.progress import Progress
from mobileclip.reinforce.teachers import TextTeacher, unit_embeddings
from mobileclip.storage import exclusive
from mobileclip.tensor_files import CheckpointError, read_tensors

if TYPE_CHECKING:
    from rich.console import Console

TEXTS_PER_PART = 1 << 16
_BATCH = 256


def reinforce_texts(
    pairs: Iterable[TextPair | BadSampleError],
    teacher: TextTeacher,
    output: str | Path,
    *,
    space: str = "",
    texts_per_part: int = TEXTS_PER_PART,
    console: Console | None = None,
) -> tuple[TextsCard, SkipReport]:
    """Store texts with a teacher's embeddings, for `mobileclip.data.TextPipelineSpec`.

    The teacher encodes a repeated text once per part. A second call skips existing parts with the same texts and
    teacher.

    Args:
        pairs: texts, and errors for unusable rows; the report counts and lists the errors.
        teacher: teacher that computes the embeddings; the function stores the embeddings as float16 with unit length.
        output: folder of the parts and the card; the function writes the card last.
        space: identity of the model that defines the embedding space, as JSON (see
            `mobileclip.inference.ModelIdentity`); empty if unknown.
        texts_per_part: maximum number of texts per part; memory holds one part.
        console: console of the progress display; None for no display.

    Returns:
        The card, and a report with the skipped rows.

    Raises:
        ValueError: if there are no texts, embeddings do not have the teacher's dim or are not finite, or another
            process writes to the folder.
    """
    folder, report = Path(output), SkipReport()
    folder.mkdir(parents=True, exist_ok=True)
    languages: dict[str, int] = {}
    counts: list[int] = []
    with (
        exclusive(folder),
        Progress("store texts", total=None, unit="texts", console=console) as progress,
    ):
        (folder / CARD).unlink(missing_ok=True)  # it may describe other texts
        usable = _usable(pairs, report)
        while part := list(islice(usable, texts_per_part)):
            for pair in part:
                languages[pair.language] = languages.get(pair.language, 0) + 1
            numbers = {name: number for number, name in enumerate(languages)}
            _write_part(folder / part_name(len(counts)), part, numbers, teacher)
            counts.append(len(part))
            progress.advance(len(part))
        if not counts:
            raise ValueError(
                f"there are no texts to store ({report.num_skipped} rows were skipped); pass at least one text"
            )
        card = TextsCard(
            teacher=teacher.name,
            weights_sha256=teacher.weights_sha256,
            dim=teacher.dim,
            space=space,
            languages=languages,
            parts=tuple(counts),
        )
        write_texts_card(folder, card)
    return card, report


def _usable(pairs: Iterable[TextPair | BadSampleError], report: SkipReport) -> Iterator[TextPair]:
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, BadSampleError):
            report.add(pair.skip(key=f"text {number}", shard=""))
        else:
            report.num_read += 1
            yield pair


def _write_part(path: Path, part: Sequence[TextPair], languages: dict[str, int], teacher: TextTeacher) -> None:
    """Write a part, unless it already exists."""
    digest = _digest(part, teacher)
    if path.exists() and _digest_of(path) == digest:
        return
    rows: dict[str, int] = {}
    for pair in part:
        rows.setdefault(pair.teacher_text, len(rows))
    tensors = part_tensors(
        [pair.text for pair in part],
        [languages[pair.language] for pair in part],
        [rows[pair.teacher_text] for pair in part],
        _encoded(list(rows), teacher),
    )
    write_tensors(path, tensors, {"digest": digest})


def _encoded(texts: list[str], teacher: TextTeacher) -> Tensor:
    """Return the teacher's embeddings of texts, normalised to unit length."""

    def encode(batch: list[str]) -> Tensor:
        return unit_embeddings(teacher, teacher.encode_texts(batch))

    return torch.stack(list(encode_each(texts, encode, batch_size=_BATCH)))


def _digest(part: Sequence[TextPair], teacher: TextTeacher) -> str:
    found = blake2b(f"{teacher.name} {teacher.weights_sha256} {teacher.dim}".encode(), digest_size=16)
    for pair in part:
        found.update(repr(attrs.astuple(pair)).encode("utf-8", errors="surrogatepass"))
    return found.hexdigest()


def _digest_of(path: Path) -> str | None:
    """Return the digest of an existing part's source; None for a damaged part."""
    try:
        return read_tensors(path, mmap=True)[1].get("digest")
    except CheckpointError:
        return None

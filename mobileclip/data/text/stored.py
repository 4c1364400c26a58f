"""Texts stored with teacher embeddings, for distilling text towers.

A folder contains parts (`00000.safetensors`, ...) and `texts.json`. Each part holds texts, their languages and the
teacher embeddings. `texts.json` names the teacher and is written last. Several texts, such as translations of one
sentence, may share an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor

from mobileclip.serialization import from_json, to_json
from mobileclip.storage import read_bytes, write_text
from mobileclip.strict import strict
from mobileclip.tensor_files import CheckpointError, read_tensors

CARD = "texts.json"
_MAX_CARD_BYTES = 1 << 24
_TYPES = {
    "text": torch.uint8,
    "end": torch.int64,
    "language": torch.int32,
    "embedding": torch.int32,
    "teacher": torch.float16,
}


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextsCard:
    """The card of a folder of stored texts: its teacher, languages and parts.

    Args:
        teacher: name of the teacher model.
        weights_sha256: SHA-256 of the teacher's weights, see `mobileclip.tensor_files.weights.weights_sha256`.
        dim: dimension of the teacher's embeddings.
        space: JSON that identifies the model of the embedding space; empty if unknown.
        languages: number of texts by language, in the order of the language indices in the parts; `""` stands for
            unknown languages.
        parts: number of texts in each part, in order.
    """

    teacher: str
    weights_sha256: str
    dim: int = attrs.field(validator=validators.gt(0))
    space: str = ""
    languages: Mapping[str, int] = attrs.field(validator=validators.min_len(1))
    parts: tuple[int, ...] = attrs.field(validator=validators.min_len(1))

    @property
    def digest(self) -> str:
        """Hash that identifies a set of stored texts."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()[:16]


def part_name(number: int) -> str:
    """Return the file name of the part with index `number`."""
    return f"{number:05d}.safetensors"


def write_texts_card(folder: Path, card: TextsCard) -> None:
    """Write the card, which marks a folder of parts as complete."""
    write_text(folder / CARD, to_json(card, indent=1) + "\n")


def part_tensors(
    texts: Sequence[str], languages: Sequence[int], embeddings: Sequence[int], teacher: Tensor
) -> dict[str, Tensor]:
    """Return the tensors of a part, as stored in its file.

    Shape: teacher (E, D).

    Args:
        texts: N texts.
        languages: index of each text's language in `TextsCard.languages`.
        embeddings: row of `teacher` for each text.
        teacher: teacher embeddings of unit length.
    """
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    return {
        "text": torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()),
        "end": torch.tensor([len(one) for one in encoded], dtype=torch.int64).cumsum(0),
        "language": torch.tensor(languages, dtype=torch.int32),
        "embedding": torch.tensor(embeddings, dtype=torch.int32),
        "teacher": teacher.to(torch.float16).contiguous(),
    }


class _Part(NamedTuple):
    """The tensors of one part, memory-mapped from the file."""

    text: np.ndarray
    end: np.ndarray
    language: np.ndarray
    embedding: np.ndarray
    teacher: np.ndarray

    def text_at(self, row: int) -> str:
        """Return the text at an index."""
        start = self.end[row - 1] if row else 0
        return self.text[start : self.end[row]].tobytes().decode("utf-8", errors="replace")


def _opened(path: Path, card: TextsCard, count: int) -> _Part:
    """Open a part with the expected number of texts.

    Raises:
        ValueError: if the part is damaged, or does not match the card.
    """
    tensors, _ = read_tensors(path, mmap=True)
    if {name: tensor.dtype for name, tensor in tensors.items()} != _TYPES:
        raise CheckpointError(f"{path} is not a part of stored texts: expected the tensors {', '.join(_TYPES)}")
    part = _Part(**{name: tensor.numpy() for name, tensor in tensors.items()})
    is_sound = (
        {len(part.end), len(part.language), len(part.embedding)} == {count}
        and part.teacher.shape[1:] == (card.dim,)
        and bool((np.diff(part.end, prepend=0) >= 0).all())
        and part.end[-1] == len(part.text)
        and 0 <= part.language.min() <= part.language.max() < len(card.languages)
        and 0 <= part.embedding.min() <= part.embedding.max() < len(part.teacher)
    )
    if not is_sound:
        raise CheckpointError(
            f"{path} does not match {CARD}, which declares {count} texts and embeddings of dim {card.dim}; write "
            "the folder again"
        )
    return part


class StoredTexts:
    """A folder of stored texts and teacher embeddings, with methods that read the files on demand.

    Args:
        folder: folder that `mobileclip.reinforce.reinforce_texts` wrote.

    Raises:
        FileNotFoundError: if the folder does not exist, or is incomplete.
        ValueError: if the card or a part is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            content = read_bytes(self.folder / CARD, limit=_MAX_CARD_BYTES)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.folder} has no {CARD}: the folder has no stored texts, or writing was interrupted; "
                "resume with the same call of mobileclip.reinforce.reinforce_texts"
            ) from None
        self.card = from_json(content.decode(), TextsCard)
        self._ends = np.cumsum(self.card.parts)
        parts = enumerate(self.card.parts)
        self._parts = [_opened(self.folder / part_name(number), self.card, count) for number, count in parts]

    def __len__(self) -> int:
        """Return the number of texts."""
        return int(self._ends[-1])

    @cached_property
    def by_language(self) -> dict[str, np.ndarray]:
        """Indices of the texts of every language, in ascending order."""
        languages = np.concatenate([part.language for part in self._parts])
        return {name: np.flatnonzero(languages == number) for number, name in enumerate(self.card.languages)}

    def at(self, numbers: Sequence[int]) -> tuple[list[str], Tensor]:
        """Return texts and their teacher embeddings.

        Shape: N indices -> N texts, (N, D) float32.
        """
        places = np.searchsorted(self._ends, numbers, side="right")
        rows = np.asarray(numbers) - np.concatenate([[0], self._ends])[places]
        texts: list[str] = [""] * len(rows)
        embeddings = np.empty((len(rows), self.card.dim), dtype=np.float32)
        for place in np.unique(places):
            part, here = self._parts[place], np.flatnonzero(places == place)
            embeddings[here] = part.teacher[part.embedding[rows[here]]]
            for index in here.tolist():
                texts[index] = part.text_at(int(rows[index]))
        return texts, torch.from_numpy(embeddings)

    def texts(self) -> Iterator[str]:
        """Yield all texts, in order."""
        for part in self._parts:
            yield from map(part.text_at, range(len(part.end)))

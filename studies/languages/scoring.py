"""Scores the search for held-out drawings by names in a language, with the student and with other methods."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET
from examples.quickstart.emoji.on_disk import DrawnDataset
from mobileclip import ImageTextModel
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from studies.languages.sources import Phrase, plain
from studies.learning_efficiency.scoring import held_out

_FOUND_IN = 5
TAUGHT, NEVER, RECOMBINED, SENTENCE, STRANGER, OTHER = "taught", "never", "recombined", "sentence", "stranger", "other"
ITSELF = "English"
SENTENCES = {
    "de": "ein Bild, auf dem man {} sieht",
    "es": "una imagen en la que se ve {}",
    "fr": "une image où l'on voit {}",
    "ja": "{}が描かれている絵を探しています",
    "ru": "картинка, на которой есть {}",
    "zh": "我想找一张有{}的图片",
}


@attrs.frozen(kw_only=True)
class Result:
    """R@5 of names in one language: the share of queries with a drawing of the name among the first five, in per cent.

    Args:
        seed: seed of the tower's training; None for the shipped tower, which learned all names.
        language: language code.
        kind: kind of the names, for example taught or never taught.
        number: number of queries.
        student: score of the trained tower.
        english: score of the English tower for the same names.
        word_by_word: score of the English tower for a word-by-word translation with the training texts.
        ceiling: score of the English tower for the English names.
    """

    seed: int | None
    language: str
    kind: str
    number: int
    student: float
    english: float
    word_by_word: float
    ceiling: float


@attrs.frozen(kw_only=True, eq=False)
class Pool:
    """Drawings that nobody learned from.

    Shape:
        images: (drawings, dim), with unit norm.

    Args:
        images: embeddings of the drawings.
        names: names of the drawings, in the form of `plain`.
    """

    images: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(cls, clip: ImageTextModel, dataset: DrawnDataset) -> Pool:
        """Return the drawings of the three test splits, preprocessed for a model."""
        contract = clip.model.spec.image.input
        parts = held_out(dataset, [contract])
        chosen = [parts[name] for name in (TEST_PICTURES, TEST_SET, TEST_NAMES) if name in parts]
        pixels = torch.cat([part.pixels[contract] for part in chosen]).permute(0, 2, 3, 1)
        names = [part.class_names[label] for part in chosen for label in part.labels.tolist()]
        with torch.inference_mode():
            rows = [
                clip.model.encode_image(clip.transform.normalize(some), normalize=True)
                for some in torch.split(pixels, 64)
            ]
        return cls(images=torch.cat(rows).float(), names=tuple(map(plain, names)))

    def recall(self, clip: ImageTextModel, texts: Sequence[str], names: Sequence[str]) -> float:
        """Return the share of texts that find a drawing of their name, in per cent."""
        found = (clip.encode_text(texts) @ self.images.T).topk(min(_FOUND_IN, len(self.names))).indices.tolist()
        hits = [name in {self.names[one] for one in row} for row, name in zip(found, names, strict=True)]
        return 100 * sum(hits) / len(hits)


class WordTable:
    """Word-by-word translation into English by a language's texts: the most frequent English word for each word."""

    def __init__(self, phrases: Iterable[Phrase]) -> None:
        own, english, both = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
        for phrase in phrases:
            words, others = set(phrase.text.lower().split()), set(phrase.english.split())
            own.update(words)
            english.update(others)
            both.update((word, other) for word in words for other in others)
        best: dict[str, tuple[float, str]] = {}
        for (word, other), count in both.items():
            dice = 2 * count / (own[word] + english[other])
            best[word] = max(best.get(word, (0.0, "")), (dice, other))
        self._english = {word: other for word, (_, other) in best.items()}

    def translate(self, text: str) -> str:
        """Return a text in English, with unknown words unchanged."""
        return " ".join(self._english.get(word, word) for word in text.lower().split())

    def knows(self, text: str) -> bool:
        """Return whether every word of a text is known."""
        return all(word in self._english for word in text.lower().split())


@attrs.frozen(kw_only=True, eq=False)
class Scorer:
    """The models, and the drawings to search.

    Args:
        pool: the drawings.
        english: the teacher with its own text tower.
        student: the same model with the trained text tower.
        seed: seed of the student.
    """

    pool: Pool
    english: ImageTextModel
    student: ImageTextModel
    seed: int | None

    def score(self, language: str, kind: str, queries: Mapping[str, str], table: WordTable) -> list[Result]:
        """Return the result of names in a language, or None if there are no queries.

        Args:
            language: language code.
            kind: kind of the names.
            queries: dictionary from English names to queries.
            table: translation table of the language.
        """
        names, texts = list(queries), list(queries.values())
        if not names:
            return []
        result = Result(
            seed=self.seed,
            language=language,
            kind=kind,
            number=len(names),
            student=self.pool.recall(self.student, texts, names),
            english=self.pool.recall(self.english, texts, names),
            word_by_word=self.pool.recall(self.english, [table.translate(text) for text in texts], names),
            ceiling=self.pool.recall(self.english, names, names),
        )
        return [result]


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write a line of JSON per result."""
    write_text(path, "".join(to_json(result) + "\n" for result in results))


def read_results(path: Path) -> list[Result]:
    """Return what was written."""
    return [from_json(line, Result) for line in path.read_text(encoding="utf-8").splitlines()]


def read_words(path: Path) -> dict[str, dict[str, str]]:
    """Return words for searching that no tower learns: by language, from English names to words."""
    found: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        language, english, text = json.loads(line)
        found.setdefault(language, {}).setdefault(plain(english), text)
    return found

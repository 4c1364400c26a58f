"""The texts for the tower: pairs of a text and its English translation, as a table that `distil_text` can also read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from pathlib import Path

import numpy as np

from examples.icons.names import family
from examples.quickstart.emoji.on_disk import DrawnDataset
from examples.quickstart.emoji.sources import download, with_version
from examples.quickstart.emoji.splits import chance
from mobileclip.data.randomness import seeded_rng
from mobileclip.datasets.sources import TextPair
from mobileclip.storage import write_text
from studies.languages.sources import SOURCES, Phrase, plain, read_phrases
from studies.languages.spec import LanguagesSpec

TABLE, CARD = "texts.tsv", "datacard.json"
# As BCP 47 has it for what people agree on in private; so names and other words can have shares of their own.
WORDS = "-x-words"
_MOST_WORDS, _MOST_CHARACTERS = 5, 60


def build_texts(spec: LanguagesSpec, dataset: DrawnDataset) -> dict[str, tuple[Phrase, ...]]:
    """Download the packages, and return their phrases in every language.

    Args:
        spec: settings of the study.
        dataset: the icons, whose captions define the teacher's known English words.

    Raises:
        ValueError: if the network or npm fails.
    """
    modules = download(spec.output / "download", tuple(SOURCES))
    known = caption_words(dataset)
    return {language: tuple(usable(read_phrases(modules, language), known)) for language in spec.languages}


def caption_words(dataset: DrawnDataset) -> frozenset[str]:
    """Return the words of the names and keywords in the teacher's training data."""
    texts = (text for sample in dataset.train.samples() for text in (*sample.captions, sample.metadata["label"]))
    return frozenset(word for text in texts for word in plain(text).split())


def usable(phrases: Iterable[Phrase], known: AbstractSet[str]) -> Iterator[Phrase]:
    """Yield the phrases whose English translation consists of known words, without repetition."""
    seen: set[tuple[str, str]] = set()
    for phrase in phrases:
        words, key = phrase.english.split(), (phrase.text.lower(), phrase.english)
        short = 0 < len(words) <= _MOST_WORDS and 0 < len(phrase.text) <= _MOST_CHARACTERS
        if short and known >= set(words) and key not in seen:
            seen.add(key)
            yield phrase


def is_held_out(english: str, fraction: float) -> bool:
    """Return whether a name is held out, whatever the order of its words."""
    return chance(0, "language", family(english)) < fraction


def without_held_out(phrases: Sequence[Phrase], names: AbstractSet[str], fraction: float) -> tuple[Phrase, ...]:
    """Return the phrases of a language without held-out names, and without other phrases of the same text.

    Args:
        phrases: phrases of one language.
        names: names of the icons.
        fraction: fraction of held-out names.
    """
    held_out = {phrase.text.lower() for phrase in phrases if _is_kept_from(phrase, names, fraction)}
    return tuple(phrase for phrase in phrases if phrase.text.lower() not in held_out)


def _is_kept_from(phrase: Phrase, names: AbstractSet[str], fraction: float) -> bool:
    return phrase.english in names and is_held_out(phrase.english, fraction)


def pairs(phrases: Mapping[str, Iterable[Phrase]]) -> Iterator[TextPair]:
    """Yield the training texts of a text tower; words that are not names have a separate language."""
    for language, several in phrases.items():
        for phrase in several:
            tag = language if phrase.is_name else language + WORDS
            yield TextPair(text=phrase.text, teacher_text=phrase.english, language=tag)


def shares(found: Iterable[TextPair], names: float) -> dict[str, float]:
    """Return the share of each language: equal for all languages, with a fraction `names` of names of things."""
    tags = sorted({pair.language for pair in found})
    return {tag: 1 - names if tag.endswith(WORDS) else names for tag in tags}


def balanced(found: Sequence[TextPair], names: float, count: int) -> Iterator[str]:
    """Yield a number of texts per language, drawn by the same shares, for training a tokenizer."""
    by_tag: dict[str, list[str]] = {}
    for pair in found:
        by_tag.setdefault(pair.language, []).append(pair.text)
    for tag, share in shares(found, names).items():
        texts = by_tag[tag]
        chosen = seeded_rng(0, "tokenizer", tag).integers(len(texts), size=round(share * count))
        yield from (texts[number] for number in np.asarray(chosen).tolist())


def write_table(folder: Path, found: Sequence[TextPair]) -> Path:
    """Write the texts with the columns `text`, `teacher_text`, `language`, and a card with counts and licences."""
    content = io.StringIO()
    writer = csv.writer(content, delimiter="\t", lineterminator="\n")
    writer.writerow(("text", "teacher_text", "language"))
    writer.writerows((pair.text, pair.teacher_text, pair.language) for pair in found)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TABLE, content.getvalue())
    counts = {tag: sum(pair.language == tag for pair in found) for tag in shares(found, 0.5)}
    sources = [
        {"title": one.title, "package": with_version(one.package), "licence": licence, "author": author}
        for one, (licence, author) in SOURCES.items()
    ]
    write_text(folder / CARD, json.dumps({"texts": counts, "sources": sources}, indent=1) + "\n")
    return folder / TABLE

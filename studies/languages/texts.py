"""The texts that the tower learns: pairs of a text and its English, as a table that `distil_text` reads too."""

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
    """Download the packages, and return what they have of every language.

    Args:
        spec: the choices.
        dataset: the icons, whose captions say which English words the teacher knows.

    Raises:
        ValueError: if the network or npm fails.
    """
    modules = download(spec.output / "download", tuple(SOURCES))
    known = caption_words(dataset)
    return {language: tuple(usable(read_phrases(modules, language), known)) for language in spec.languages}


def caption_words(dataset: DrawnDataset) -> frozenset[str]:
    """Return the words of the names and keywords that the teacher learned from."""
    texts = (text for sample in dataset.train.samples() for text in (*sample.captions, sample.metadata["label"]))
    return frozenset(word for text in texts for word in plain(text).split())


def usable(phrases: Iterable[Phrase], known: AbstractSet[str]) -> Iterator[Phrase]:
    """Yield, once each, the phrases whose English consists of known words."""
    seen: set[tuple[str, str]] = set()
    for phrase in phrases:
        words, key = phrase.english.split(), (phrase.text.lower(), phrase.english)
        short = 0 < len(words) <= _MOST_WORDS and 0 < len(phrase.text) <= _MOST_CHARACTERS
        if short and known >= set(words) and key not in seen:
            seen.add(key)
            yield phrase


def is_held_out(english: str, fraction: float) -> bool:
    """Return whether a name, in any order of its words, is one that no text may have."""
    return chance(0, "language", family(english)) < fraction


def without_held_out(phrases: Sequence[Phrase], names: AbstractSet[str], fraction: float) -> tuple[Phrase, ...]:
    """Return the phrases of a language that are no held-out names, nor read like one.

    Args:
        phrases: of one language.
        names: what icons are called.
        fraction: of the names that is held out.
    """
    held_out = {phrase.text.lower() for phrase in phrases if _is_kept_from(phrase, names, fraction)}
    return tuple(phrase for phrase in phrases if phrase.text.lower() not in held_out)


def _is_kept_from(phrase: Phrase, names: AbstractSet[str], fraction: float) -> bool:
    return phrase.english in names and is_held_out(phrase.english, fraction)


def pairs(phrases: Mapping[str, Iterable[Phrase]]) -> Iterator[TextPair]:
    """Yield the texts as a text tower learns them; the words that are no names have a language of their own."""
    for language, several in phrases.items():
        for phrase in several:
            tag = language if phrase.is_name else language + WORDS
            yield TextPair(text=phrase.text, teacher_text=phrase.english, language=tag)


def shares(found: Iterable[TextPair], names: float) -> dict[str, float]:
    """Return the share of every language: as many texts of each, of which `names` are names of things."""
    tags = sorted({pair.language for pair in found})
    return {tag: 1 - names if tag.endswith(WORDS) else names for tag in tags}


def balanced(found: Sequence[TextPair], names: float, count: int) -> Iterator[str]:
    """Yield so many texts of every language, drawn by the same shares, so that a tokenizer knows all of them."""
    by_tag: dict[str, list[str]] = {}
    for pair in found:
        by_tag.setdefault(pair.language, []).append(pair.text)
    for tag, share in shares(found, names).items():
        texts = by_tag[tag]
        chosen = seeded_rng(0, "tokenizer", tag).integers(len(texts), size=round(share * count))
        yield from (texts[number] for number in np.asarray(chosen).tolist())


def write_table(folder: Path, found: Sequence[TextPair]) -> Path:
    """Write the texts as `text`, `teacher_text`, `language`, with a card of their numbers and licences."""
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

"""Runs the whole study: texts, trainings and results; finished steps are not repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import process_time

import attrs

import mobileclip
from examples.icons import build_dataset
from examples.quickstart.emoji.sources import download
from mobileclip import ImageTextModel
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say
from studies.languages.report import card, tables
from studies.languages.scoring import (
    ITSELF,
    NEVER,
    OTHER,
    RECOMBINED,
    SENTENCE,
    SENTENCES,
    STRANGER,
    TAUGHT,
    Pool,
    Result,
    Scorer,
    WordTable,
    read_results,
    read_words,
    write_results,
)
from studies.languages.sources import ENGLISH, SOURCES, Phrase, names_of, read_phrases
from studies.languages.spec import STRANGERS, LanguagesSpec
from studies.languages.texts import CARD, build_texts, is_held_out, pairs, without_held_out, write_table
from studies.languages.training import TEACHER, train_tower

NAME = "icons-multilingual"
RESULTS = "results.jsonl"


def make(spec: LanguagesSpec) -> Path:
    """Make the texts, train and measure the towers, and write the shipped tower, its card and the tables.

    Args:
        spec: settings of the study.

    Returns:
        The file of the tower.

    Raises:
        ValueError: if the network or npm fails, or the folder holds texts with other settings.
    """
    _claim(spec)
    dataset = build_dataset(attrs.evolve(spec.icons, output=spec.output / "icons"))
    phrases = build_texts(spec, dataset)
    english = mobileclip.load(TEACHER)
    pool = Pool.of(english, dataset)
    results: list[Result] = []
    for seed in (*range(spec.num_seeds), None):
        folder = spec.output / ("ships" if seed is None else f"seed_{seed}")
        if not (folder / RESULTS).exists():
            taught = phrases if seed is None else _left(spec, phrases, set(pool.names))
            found = list(pairs(taught))
            write_table(folder, found)
            start = process_time()
            path = train_tower(spec, found, folder, seed=seed or 0)
            minutes = (process_time() - start) / 60
            say(f"{path}: {len(found):,} texts of {len(taught)} languages, {minutes:.1f} minutes of processor time")
            student = mobileclip.load(TEACHER, text_model=path)
            if seed is None:  # as it ships: beside the English tower
                student = ImageTextModel(english.model, text_towers=(student.model.text_encoder,))
            scorer = Scorer(pool=pool, english=english, student=student, seed=seed)
            write_results(folder / RESULTS, measured(spec, scorer, phrases, taught))
        results += read_results(folder / RESULTS)
    write_results(spec.output / RESULTS, results)
    ships = spec.output / f"{NAME}.safetensors"
    ships.write_bytes((spec.output / "ships" / "tower.safetensors").read_bytes())
    write_text(ships.with_suffix(".md"), card(results, ships, spec.output / "ships" / CARD, pool=len(pool.names)))
    write_text(spec.output / "tables.md", "\n".join(tables(results)) + "\n")
    return ships


def _claim(spec: LanguagesSpec) -> None:
    """Mark the folder as made with these settings, or raise if it has others; the number of trainings may change."""
    path, choices = spec.output / "spec.json", attrs.evolve(spec, output=Path(), num_seeds=1)
    if path.exists() and from_json(path.read_text(encoding="utf-8"), LanguagesSpec) != choices:
        raise ValueError(
            f"{spec.output} was made with other settings, see {path}; choose another folder, or delete this folder"
        )
    spec.output.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(choices, indent=1) + "\n")


def _left(
    spec: LanguagesSpec, phrases: Mapping[str, tuple[Phrase, ...]], names: set[str]
) -> dict[str, tuple[Phrase, ...]]:
    return {language: without_held_out(several, names, spec.held_out) for language, several in phrases.items()}


def measured(
    spec: LanguagesSpec,
    scorer: Scorer,
    phrases: Mapping[str, tuple[Phrase, ...]],
    taught: Mapping[str, Iterable[Phrase]],
) -> Iterator[Result]:
    """Yield the results of every language's names.

    Args:
        spec: settings of the study.
        scorer: object that searches.
        phrases: all phrases of every language.
        taught: phrases that the student learned.
    """
    others = {} if spec.words is None else read_words(spec.words)
    for language in spec.languages:
        table = WordTable(taught[language])
        known = {phrase.text.lower() for phrase in taught[language]}
        queries = _asked(names_of(phrases[language]), scorer.pool)
        kept = {name: text for name, text in queries.items() if is_held_out(name, spec.held_out)}
        usual = {name: text for name, text in queries.items() if name not in kept}
        never = {name: text for name, text in kept.items() if text.lower() not in known}
        yield from scorer.score(language, TAUGHT, usual, table)
        if scorer.seed is not None:
            yield from scorer.score(language, NEVER, never, table)
            recombined = {name: text for name, text in never.items() if table.knows(text)}
            yield from scorer.score(language, RECOMBINED, recombined, table)
        yield from scorer.score(language, OTHER, _asked(others.get(language, {}), scorer.pool), table)
        if language in SENTENCES:
            sentences = {name: SENTENCES[language].format(text) for name, text in usual.items()}
            yield from scorer.score(language, SENTENCE, sentences, table)
    yield from scorer.score(ENGLISH, ITSELF, {name: name for name in scorer.pool.names}, WordTable(()))
    modules = download(spec.output / "download", tuple(SOURCES))
    for language in STRANGERS:
        strange = _asked(names_of(read_phrases(modules, language)), scorer.pool)
        yield from scorer.score(language, STRANGER, strange, WordTable(()))


def _asked(names: Mapping[str, str], pool: Pool) -> dict[str, str]:
    drawn = set(pool.names)
    return {name: text for name, text in names.items() if name in drawn}

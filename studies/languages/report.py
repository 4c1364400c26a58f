"""Writes the results as tables for the page, and as the card of the shipped tower."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from studies.languages.scoring import ITSELF, NEVER, OTHER, RECOMBINED, SENTENCE, STRANGER, TAUGHT, Result
from studies.languages.sources import ENGLISH
from studies.languages.spec import LANGUAGES, STRANGERS

_TITLES = {
    TAUGHT: "names that it was taught",
    NEVER: "names that no text had",
    RECOMBINED: "of these, new combinations of words that texts had",
    OTHER: "another dictionary's words for the same things, taught or not",
    SENTENCE: "names that it was taught, in sentences (6 languages)",
    STRANGER: "7 languages and scripts that no text had",
}

_COLUMNS = (
    "names", "this tower", "of the ceiling", "English tower", "word by word", "ceiling", "languages where words win",
)  # fmt: skip

_CARD = """# icons-multilingual

The packaged model `icons` with a second text tower of {size:.1f} MB, for {languages} languages. The model
comes with the package and needs no download.

```python
clip = mobileclip.load("icons-multilingual")
clip.encode_text(["flèche rouge", "rotes Herz", "赤いハート"])
```

**Good for** searching icons by names of one to four words. The tower with the larger share of a query's n-grams in its
training data encodes the query; English queries go to the original tower of `icons`. **Not for** photographs,
sentences, or languages that the table lacks.

## How good it is

R@5: percentage of names that find one of their drawings among the first five results, of {pool:,} unseen drawings.
[The study](../../../../studies/languages/README.md) compares other methods, also on names outside the training set.

{rows}

## How it was made

`python -m studies.languages`: a bag of tokens, trained on {texts:,} texts. The target for each text is the embedding of
its English translation by the text tower of `icons`. The packaged tower was trained on all names; the study held some
out.

## Whose texts it learned from

Weights and code are under the MIT licence. Authors of the texts:

| texts | author | licence | package |
|---|---|---|---|
{sources}
"""


def tables(results: Sequence[Result]) -> list[str]:
    """Return the lines of the page's tables, for the trainings with held-out names."""
    tried = [one for one in results if one.seed is not None]

    def of(kind: str, language: str | None = None) -> list[Result]:
        return [one for one in tried if one.kind == kind and language in (None, one.language)]

    lines = _head("language", "script", *_COLUMNS, "names never taught", "this tower", "of the ceiling")
    for language, (title, script) in LANGUAGES.items():
        if taught := of(TAUGHT, language):
            lines.append(f"| {title} | {script} | {_row(taught)} | {_short(of(NEVER, language))} |")
    lines += ["", *_head("what is typed", *_COLUMNS)]
    lines += [f"| {title} | {_row(of(kind))} |" for kind, title in _TITLES.items() if of(kind)]
    lines += ["", *_head("language that no text had", "script", *_COLUMNS)]
    for language, (title, script) in STRANGERS.items():
        if strange := of(STRANGER, language):
            lines.append(f"| {title} | {script} | {_row(strange)} |")
    return lines


def card(results: Sequence[Result], path: Path, datacard: Path, *, pool: int) -> str:
    """Return the card of the shipped tower.

    Args:
        results: all of them.
        path: file of the tower.
        datacard: data card of the texts.
        pool: number of searched drawings.
    """
    shipped = [one for one in results if one.seed is None and one.kind in (TAUGHT, ITSELF)]
    about = json.loads(datacard.read_text(encoding="utf-8"))
    titles = {ENGLISH: ITSELF} | {code: title for code, (title, _) in LANGUAGES.items()}
    rows = _head("language", "names", "R@5", "of the English names'")
    rows += [
        f"| {titles[one.language]} | {one.number:,} | {one.student:.1f} | {100 * one.student / one.ceiling:.0f} % |"
        for one in shipped
    ]
    return _CARD.format(
        size=path.stat().st_size / 1e6,
        languages=len(shipped) - 1,
        pool=pool,
        rows="\n".join(rows),
        texts=sum(about["texts"].values()),
        sources="\n".join(
            f"| {one['title']} | {one['author']} | {one['licence']} | `{one['package']}` |" for one in about["sources"]
        ),
    )


def _head(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _row(results: Sequence[Result]) -> str:
    cells = [_spread(results, lambda one: one.student), f"{_share(results)} %"]
    cells += [_spread(results, get).partition(" ")[0] for get in _BESIDE]
    ahead = sum(
        mean(one.word_by_word - one.student for one in own) > 0
        for language in {one.language for one in results}
        if (own := [one for one in results if one.language == language])
    )
    return " | ".join([f"{_number(results):,}", *cells, str(ahead)])


def _short(results: Sequence[Result]) -> str:
    """Return names, score and share; for few names, the score is mostly chance."""
    if not results:
        return " | | "
    return f"{_number(results):,} | {_spread(results, lambda one: one.student)} | {_share(results)} %"


_BESIDE: tuple[Callable[[Result], float], ...] = (
    lambda one: one.english,
    lambda one: one.word_by_word,
    lambda one: one.ceiling,
)


def _number(results: Iterable[Result]) -> int:
    of_one = {(one.language, one.kind): one.number for one in results}
    return sum(of_one.values())


def _spread(results: Sequence[Result], get: Callable[[Result], float]) -> str:
    """Return the mean over names, so that each name counts once, ± the standard deviation over seeds."""
    return _told(_by_seed(results, get))


def _share(results: Sequence[Result]) -> str:
    """Return the score in per cent of the ceiling's score, over the same names."""
    scores, ceilings = (_by_seed(results, get) for get in (lambda one: one.student, lambda one: one.ceiling))
    return _told([100 * score / most if most else 0.0 for score, most in zip(scores, ceilings, strict=True)])


def _by_seed(results: Sequence[Result], get: Callable[[Result], float]) -> list[float]:
    by_seed: dict[int | None, list[Result]] = {}
    for one in results:
        by_seed.setdefault(one.seed, []).append(one)
    return [sum(one.number * get(one) for one in own) / _number(own) for own in by_seed.values()]


def _told(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

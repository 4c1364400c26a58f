"""Captions in another order, read from a file: `mobileclip eval orders` writes it.

    {"tagger": "spaCy en_core_web_sm 3.8.0"}
    {"caption": "A red kite.", "orders": ["A red kite .", ". red kite A", "red A kite .", ". A red kite"]}

The first line says what found the nouns and adjectives. The others have, for a caption, an order for each of
`PERTURBATIONS`.

Source: Yuksekgonul et al. 2023, section 2.3 (arXiv 2210.01936), and the code that it is published with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from mobileclip.data.skips import Skip, SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.tasks.annotations import read_entries
from mobileclip.evaluation.tasks.choices.case import Case, Picture, View

PERTURBATIONS = ("nouns_and_adjectives", "all_but_nouns_and_adjectives", "within_trigrams", "trigrams")
"""What is shuffled: nouns among themselves and adjectives among themselves; all other words, marks too; the words
within every three; the threes."""

_MOST_WORDS = 30
_MARKS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")


@attrs.frozen(kw_only=True)
class Captions:
    """Pictures with their captions.

    Args:
        key: of the task of their orders.
        name: of this task in tables.
        path: of the folder that has them.
        read: yields them, each picture under a name of its own; tells a report what it leaves out.
        num_pictures: about how many there are; zero where that is not known.
        benchmark: the data set that they are of; None where they are files in `path`.
    """

    key: str
    name: str
    path: str
    read: Callable[[SkipReport], Iterable[tuple[Picture, tuple[str, ...]]]] = attrs.field(repr=False)
    num_pictures: int
    benchmark: Benchmark | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Orders:
    """Captions in other orders.

    Args:
        tagger: what found nouns and adjectives: with another one, it is another benchmark.
        of: by caption, an order for each of `PERTURBATIONS`.
    """

    tagger: str
    of: Mapping[str, tuple[str, ...]] = attrs.field(repr=lambda of: f"of {len(of)} captions")

    def ask(self, captions: Captions, report: SkipReport) -> Iterator[Case | Picture]:
        """Yield a case for every caption: it against its other orders, all as `normalize_caption` shows them.

        Args:
            captions: of which there are orders.
            report: told of captions without a word, no_caption, and of what `captions` leave out.

        Raises:
            ValueError: if there are no orders of a caption.
        """
        for picture, texts in captions.read(report):
            for number, caption in enumerate(texts):
                key, true = f"{picture.name}, caption {number}", normalize_caption(caption)
                if not true:
                    detail = f"{caption[:40]!r} has no word"
                    report.add(Skip(reason="no_caption", key=key, shard=captions.path, detail=detail))
                    continue
                if caption not in self.of:
                    raise ValueError(
                        f"there are no orders of {caption[:60]!r}: the file has those of other captions; write it anew "
                        f"with mobileclip eval orders"
                    )
                false = map(normalize_caption, self.of[caption])
                yield Case(key=key, views=(View(picture.name),), texts=(true, *false))
            yield picture


def read_orders(path: Path) -> Orders:
    """Return the orders in a file.

    Raises:
        ValueError: if there is none, or a line is malformed; the message says which.
    """
    head, *entries = read_entries(str(path), "orders of words")
    return Orders(
        tagger=head.text("tagger"),
        of={entry.text("caption"): entry.texts("orders", "four texts", count=len(PERTURBATIONS)) for entry in entries},
    )


def normalize_caption(caption: str) -> str:
    """Return a caption as the benchmark shows it to models: in lower case, without most marks, thirty words at most.

    True captions and perturbed ones alike, so that no mark gives the true one away. Commas and hyphens stay.
    """
    text = _SPACES.sub(" ", _MARKS.sub(" ", caption.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_MOST_WORDS])

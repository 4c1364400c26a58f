"""The pictures that two models answer differently, side by side; of one model alone, its mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

import attrs
import numpy as np

from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.metrics.answers import Answers
from mobileclip.evaluation.report.pictures import Found, Picture, find_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_SHOWN = 12
"""Pictures of one kind that are shown of a data set."""


@attrs.frozen(kw_only=True)
class ShownPicture:
    """A picture with its true label or captions, and the models' answers.

    Args:
        picture: where it could be read again.
        truth: its class, or its captions.
        answer: of the model.
        other: of the model that it is compared with; empty without one.
    """

    picture: Picture | None
    truth: str
    answer: str
    other: str = ""


@attrs.frozen(kw_only=True)
class Disagreement:
    """Two models on one data set, or one model and the truth.

    Args:
        model: whose gains and losses they are.
        reference: the model that it is compared with; None where a model stands alone.
        dataset: its name in tables.
        question: what was asked about every picture.
        num_images: pictures that were asked about.
        num_gained: that the model alone has right.
        num_lost: that the reference alone has right; of a model that stands alone, that it has wrong.
        gained: some of the first, spread over the data set.
        lost: some of the second.
    """

    model: str
    reference: str | None
    dataset: str
    question: str
    num_images: int
    num_gained: int
    num_lost: int
    gained: tuple[ShownPicture, ...]
    lost: tuple[ShownPicture, ...]


def find_disagreements(
    benchmark: Benchmark, dataset: str, answers: Mapping[str, Answers], *, most_shown: int = MOST_SHOWN
) -> tuple[Disagreement, ...]:
    """Return the images on which models disagree with the first one; of a single model, its mistakes.

    The pictures are read from the data set again, once for all models, up to the last that is shown.

    Args:
        benchmark: the data set.
        dataset: its name in tables.
        answers: by model; those to other pictures than the first model's are left out.
        most_shown: pictures of one kind that are shown of a pair.
    """
    (first, base), *others = answers.items()
    pairs = [(name, one) for name, one in others if one.keys == base.keys]
    if pairs:
        kinds = [(name, one, one.right & ~base.right, base.right & ~one.right) for name, one in pairs]
    else:
        kinds = [(first, base, np.zeros_like(base.right), ~base.right)]
    chosen = [(_spread(gained, most_shown), _spread(lost, most_shown)) for _, _, gained, lost in kinds]
    shown = {number for both in chosen for numbers in both for number in numbers}
    captions = _captions_of(shown, base, [base, *(one for _, one in pairs)])
    found = find_images(benchmark, base.keys, pictures=shown, captions=captions | shown)
    reader = _Reader(benchmark, base, found)
    return tuple(
        Disagreement(
            model=name,
            reference=first if pairs else None,
            dataset=dataset,
            question="which caption is its own" if benchmark.kind == "retrieval" else "which class it is of",
            num_images=len(base.keys),
            num_gained=int(gained.sum()),
            num_lost=int(lost.sum()),
            gained=tuple(reader.shown(number, one, base if pairs else None) for number in some_gained),
            lost=tuple(reader.shown(number, one, base if pairs else None) for number in some_lost),
        )
        for (name, one, gained, lost), (some_gained, some_lost) in zip(kinds, chosen, strict=True)
    )


class _Reader:
    """Answers as people read them."""

    def __init__(self, benchmark: Benchmark, answers: Answers, found: Found) -> None:
        self.benchmark, self.found = benchmark, found
        counts = answers.num_captions
        self.first = None if counts is None else [0, *accumulate(counts.tolist())]

    def shown(self, number: int, model: Answers, reference: Answers | None) -> ShownPicture:
        return ShownPicture(
            picture=self.found.pictures.get(number),
            truth=self._truth(number),
            answer=self._said(model, number),
            other="" if reference is None else self._said(reference, number),
        )

    def _truth(self, number: int) -> str:
        if self.first is not None:
            return " / ".join(self.found.captions.get(number, ()))
        label = self.found.labels.get(number)
        return "" if label is None else self.benchmark.class_names[label]

    def _said(self, answers: Answers, number: int) -> str:
        answer = int(answers.answers[number])
        if self.first is None:
            return self.benchmark.class_names[answer]
        owner = int(np.searchsorted(self.first, answer, side="right")) - 1
        captions = self.found.captions.get(owner, ())
        place = answer - self.first[owner]
        return captions[place] if place < len(captions) else ""


def _captions_of(numbers: set[int], base: Answers, models: list[Answers]) -> set[int]:
    """Return the pictures whose captions are answers to others."""
    if base.num_captions is None:
        return set()
    ends = np.cumsum(base.num_captions)
    return {int(np.searchsorted(ends, one.answers[number], side="right")) for one in models for number in numbers}


def _spread(which: NDArray[np.bool_], most: int) -> list[int]:
    """Return numbers of some of the pictures, evenly spread and so not chosen by how they look."""
    there = np.flatnonzero(which)
    count = min(len(there), most)
    return [int(there[(2 * place + 1) * len(there) // (2 * count)]) for place in range(count)]

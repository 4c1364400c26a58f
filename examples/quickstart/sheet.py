"""A page of test pictures drawn at random: what each row of the table takes them for, and what they are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobileclip.data import ImageTextSample
from mobileclip.datasets import Section, Thumbnail, load_shown, write_pictures

_NUM_PICTURES = 12
_MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}


def write_sheet(samples: Sequence[ImageTextSample], answers: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Write a page of test pictures with the truth and the answers below, right ones ticked and wrong ones crossed.

    Args:
        samples: the pictures, as `choose_pictures` returns them.
        answers: by what gave them, then by the picture's key.
        path: of the HTML file.
    """
    pictures = []
    for sample in samples:
        assert sample.image is not None, "the data set stores every picture"
        truth = sample.metadata["label"]
        said = [f"{_MARKS[given[sample.key] == truth]} {name}: {given[sample.key]}" for name, given in answers.items()]
        pictures.append(Thumbnail(picture=load_shown(sample.image), lines=(truth, *said)))
    write_pictures(path, "Test pictures taken by chance, with answers", [Section(pictures=pictures)])


def count_right(samples: Sequence[ImageTextSample], answers: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Return how many answers are the truth, by what gave them; see `write_sheet`."""
    return {name: sum(given[one.key] == one.metadata["label"] for one in samples) for name, given in answers.items()}


def choose_pictures(samples: Sequence[ImageTextSample], *, seed: int) -> list[ImageTextSample]:
    """Return twelve pictures, or all where there are fewer, drawn by chance."""
    return random.Random(seed).sample(samples, min(_NUM_PICTURES, len(samples)))  # noqa: S311  nothing secret

"""A sheet of test pictures drawn at random: what each row of the table takes them for, and what they are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.quickstart.emoji import DataSplit
from mobileclip.data import ImageTextSample, decode_image

_COLUMNS = 4
_ROWS = 3
NUM_PICTURES = _COLUMNS * _ROWS
_LETTERS = 26
_RIGHT, _WRONG = "tab:green", "tab:red"


def draw_sheet(split: DataSplit, answers: Mapping[str, Mapping[str, str]], path: Path, *, seed: int) -> dict[str, int]:
    """Draw test pictures with the truth and the answers below, right ones green and wrong ones red.

    Args:
        split: where the pictures come from.
        answers: by what gave them, then by the picture's key.
        path: of the PNG.
        seed: of the choice of pictures, which depends on nothing else but the split.

    Returns:
        How many answers are right, by what gave them.
    """
    from matplotlib.figure import Figure

    chosen = choose_pictures(list(split.samples()), seed=seed)
    num_right = dict.fromkeys(answers, 0)
    figure = Figure(figsize=(3.3 * _COLUMNS, (2.3 + 0.22 * (1 + len(answers))) * _ROWS), layout="constrained")
    for axes, sample in zip(figure.subplots(_ROWS, _COLUMNS).flat, chosen, strict=False):
        assert sample.image is not None, "the data set stores every picture"
        axes.imshow(decode_image(sample.image))
        axes.set(xticks=[], yticks=[])
        truth = sample.metadata["label"]
        axes.set_xlabel(_shortened(truth), fontsize=12, fontweight="bold")
        for line, (name, given) in enumerate(answers.items(), 1):
            answer = given[sample.key]
            num_right[name] += answer == truth
            axes.annotate(
                f"{name}: {_shortened(answer)}",
                xy=(0.5, 0),
                xycoords="axes fraction",
                xytext=(0, -5 - 15 * (line + 0.35)),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=10.5,
                color=_RIGHT if answer == truth else _WRONG,
            )
    figure.savefig(path, dpi=100)
    return num_right


def choose_pictures(samples: Sequence[ImageTextSample], *, seed: int) -> list[ImageTextSample]:
    """Return as many pictures as a sheet holds, or all where there are fewer, drawn by chance."""
    return random.Random(seed).sample(samples, min(NUM_PICTURES, len(samples)))  # noqa: S311  nothing secret


def _shortened(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"

"""A sheet of test pictures drawn at random: what each row of the table takes them for, and what they are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobileclip.data import ImageTextSample
from mobileclip.datasets.viewing.canvas import load_shown

_COLUMNS = 4
_ROWS = 3
_LETTERS = 26
_MARKS = {True: ("\N{CHECK MARK}", "tab:green"), False: ("\N{BALLOT X}", "tab:red")}


def draw_sheet(samples: Sequence[ImageTextSample], answers: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Draw test pictures with the truth and the answers below, right ones ticked and wrong ones crossed.

    Args:
        samples: the pictures, as `choose_pictures` returns them.
        answers: by what gave them, then by the picture's key.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * _COLUMNS, (2.3 + 0.22 * (1 + len(answers))) * _ROWS), layout="constrained")
    for axes, sample in zip(figure.subplots(_ROWS, _COLUMNS).flat, samples, strict=False):
        assert sample.image is not None, "the data set stores every picture"
        axes.imshow(load_shown(sample.image))
        axes.set(xticks=[], yticks=[])
        truth = sample.metadata["label"]
        axes.set_xlabel(_shortened(truth), fontsize=12, fontweight="bold")
        for line, (name, given) in enumerate(answers.items(), 1):
            answer = given[sample.key]
            mark, color = _MARKS[answer == truth]
            axes.annotate(
                f"{mark} {name}: {_shortened(answer)}",
                xy=(0.5, 0),
                xycoords="axes fraction",
                xytext=(0, -5 - 15 * (line + 0.35)),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=10.5,
                color=color,
            )
    figure.savefig(path, dpi=100)


def count_right(samples: Sequence[ImageTextSample], answers: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Return how many answers are the truth, by what gave them; see `draw_sheet`."""
    return {name: sum(given[one.key] == one.metadata["label"] for one in samples) for name, given in answers.items()}


def choose_pictures(samples: Sequence[ImageTextSample], *, seed: int) -> list[ImageTextSample]:
    """Return as many pictures as a sheet holds, or all where there are fewer, drawn by chance."""
    return random.Random(seed).sample(samples, min(_COLUMNS * _ROWS, len(samples)))  # noqa: S311  nothing secret


def _shortened(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"

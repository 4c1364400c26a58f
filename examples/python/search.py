"""The common command of all examples: find the texts that fit an image, and the image that fits a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contract import (
    Encode,
    Export,
    check_golden,
    encode_each,
    preprocess,
    probabilities,
    read_export,
    read_image,
    shortest,
    tokenize,
)

OpenTower = Callable[[Export, dict[str, Any]], Encode]


def main(description: str, *, target: str, open_tower: OpenTower) -> int:
    """Compare the images and texts of the command line, and return the exit status.

    Args:
        description: description of the example.
        target: target of the export.
        open_tower: function of an export and the contract's entry of a tower that returns a function to run one batch
            of the tower.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("export", type=Path, help=f"a folder that `mobileclip export --target {target}` wrote")
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="FILE", help="paths of the images")
    parser.add_argument("--texts", nargs="+", required=True, metavar="TEXT", help="labels or search queries")
    arguments = parser.parse_args()
    try:
        _compare(read_export(arguments.export, target=target), arguments.images, arguments.texts, open_tower)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _compare(export: Export, paths: Sequence[Path], texts: Sequence[str], open_tower: OpenTower) -> None:
    encoders = {name: open_tower(export, export.tower(name)) for name in ("image", "text")}
    whole = encoders["text"]
    encoders["text"] = lambda ids: whole(shortest(export, ids))
    for name, encode in encoders.items():
        print(f"golden vectors of the {name} tower: least cosine {check_golden(export, name, encode):.6f}")
    pixels = np.concatenate([preprocess(export, read_image(export, path)) for path in paths])
    images, captions = encode_each(encoders["image"], pixels), encode_each(encoders["text"], tokenize(export, texts))
    cosines = images @ captions.T
    probability = probabilities(export, cosines)
    for row, path in enumerate(paths):
        print(f"\n{path}")
        for column in np.argsort(-cosines[row]):
            print(f"  {probability[row, column]:6.1%}  cosine {cosines[row, column]:.4f}  {texts[column]}")
    if len(paths) > 1:
        for column, text in enumerate(texts):
            print(f"\nimages for {text!r}, nearest first")
            for row in np.argsort(-cosines[:, column]):
                print(f"  cosine {cosines[row, column]:.4f}  {paths[row]}")

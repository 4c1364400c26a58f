"""Scores on stricter held-out drawings: without glyphs from training, and separately for known and unknown words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES
from examples.icons.strict import SAME_GLYPH, SEEN_WORDS, Bits, strict_bits
from examples.quickstart.emoji.on_disk import DrawnDataset
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from studies.learning_efficiency.results import Result
from studies.learning_efficiency.scoring import HeldOut, pack_bits, unpack_bits
from studies.learning_efficiency.spec import EfficiencySpec
from studies.learning_efficiency.tables import Results, by_seed, percent, spread, table
from studies.learning_efficiency.variants import LADDER, VARIANTS

STRICT = "strict.json"
_SHOWN = (*LADDER, "names")
EVERY = (TEST_PICTURES, TEST_SET, TEST_NAMES)
# Properties of images per stricter part: a bit, and its required value.
ASKED: Mapping[str, tuple[tuple[str, ...], tuple[str, bool] | None]] = {
    "all": (EVERY, None),
    "the same glyph is in training": (EVERY, (SAME_GLYPH, True)),
    "the glyph is not in training": (EVERY, (SAME_GLYPH, False)),
    "of words that are in names of training": ((TEST_NAMES,), (SEEN_WORDS, True)),
    "with a word that is in none": ((TEST_NAMES,), (SEEN_WORDS, False)),
}


@attrs.frozen(kw_only=True)
class StrictPart:
    """The properties of the images in a held-out part, in the order of the part.

    Args:
        num_pictures: number of images.
        bits: one bit per image by property (`SAME_GLYPH`, `SEEN_WORDS`), packed as hexadecimal digits.
    """

    num_pictures: int
    bits: Mapping[str, str]

    def where(self, asked: tuple[str, bool] | None) -> Bits:
        """Return a mask of the images with the given property; all images if no property is given."""
        if asked is None:
            return np.ones(self.num_pictures, dtype=bool)
        return np.asarray(unpack_bits(self.bits[asked[0]], self.num_pictures) == asked[1])


@attrs.frozen(kw_only=True)
class StrictParts:
    """The properties of the data set, in addition to its splits.

    Args:
        num_training: pictures to learn from.
        named: share of captions that contain the image's name, in per cent; for `real` and `synthetic` captions.
        parts: the held-out parts, by name.
    """

    num_training: int
    named: Mapping[str, float]
    parts: Mapping[str, StrictPart]


def read_strict(path: Path, dataset: DrawnDataset | None = None) -> StrictParts:
    """Return the content of the file; if the file is missing and a data set is given, write it first."""
    if dataset is not None and not path.exists():
        parts = {
            name: StrictPart(
                num_pictures=dataset.splits[name].num_samples,
                bits={kind: pack_bits(bits) for kind, bits in kinds.items()},
            )
            for name, kinds in strict_bits(dataset).items()
        }
        train = list(dataset.train.samples())
        found = StrictParts(
            num_training=len(train),
            named={
                "real": _named((one.metadata["label"], one.captions) for one in train),
                "synthetic": _named((one.metadata["label"], one.syn_captions["syn_text"]) for one in train),
            },
            parts=parts,
        )
        write_text(path, to_json(found, indent=1) + "\n")
    return from_json(path.read_text(encoding="utf-8"), StrictParts)


def _named(captions: Iterable[tuple[str, Sequence[str]]]) -> float:
    """Return the share of captions that contain the name, in per cent."""
    found = [name in text for name, texts in captions for text in texts]
    return 100 * sum(found) / len(found)


def stricter(parts: Mapping[str, HeldOut], strict: StrictParts) -> dict[str, HeldOut]:
    """Return the stricter parts of held-out drawings that are not empty, by their titles."""
    found = {}
    for title, (names, asked) in ASKED.items():
        for name in names if asked is not None else ():
            chosen = torch.from_numpy(strict.parts[name].where(asked))
            pixels = {contract: images[chosen] for contract, images in parts[name].pixels.items()}
            if chosen.any():
                one = attrs.evolve(parts[name], pixels=pixels, labels=parts[name].labels[chosen])
                found[f"{TITLES[name]}, {title}"] = one
    return found


def strict_table(spec: EfficiencySpec, results: Results, strict: StrictParts) -> list[str]:
    """Return top-5 on stricter parts for the ladder and for names: the longest trainings with hits per share.

    Args:
        spec: settings of the study.
        results: finished trainings.
        strict: properties of the images.

    Returns:
        The table has a column per variant, share and budget; the result is empty if no line has hits.
    """
    columns = []
    for share in spec.shares:
        for budget in reversed(spec.budgets):
            own = [(name, share, budget) for name in _SHOWN if _has_hits(by_seed(results, name, share, budget))]
            if own:
                columns += own
                break
    rows = []
    for part in EVERY:
        rows.append([f"**{TITLES[part]}**", *[""] * (len(columns) + 1)])
        for title, (parts, asked) in ASKED.items():
            if part not in parts:
                continue
            chosen = strict.parts[part].where(asked)
            cells = [_cell(by_seed(results, *at), part, chosen) for at in columns]
            rows.append([title, f"{int(chosen.sum()):,}", *cells])
    heads = (f"{VARIANTS[name].title}, {percent(share)}, {budget:,} steps" for name, share, budget in columns)
    return table(["top-5", "pictures", *heads], rows) if columns else []


def _has_hits(found: Mapping[int, Result]) -> bool:
    return bool(found) and all(
        part in one.scores and one.scores[part].hits is not None for one in found.values() for part in EVERY
    )


def _cell(found: Mapping[int, Result], part: str, chosen: Bits) -> str:
    every = (one.scores[part].hits for one in found.values())
    scores = [100 * float(hits.bits("top5")[chosen].mean()) for hits in every if hits is not None and chosen.any()]
    return spread(scores) if scores else ""

"""What examples add to a concept's text: average precision with one, three and five, where they help and always.

Command:   python -m benchmarks concepts                             (data of `python -m examples.icons`)
Hardware:  any CPU; one thread
Time:      three minutes on one core, most of them to encode 2,500 drawings
Result:    average precision of the text alone, of examples that are always used, and of those that held-back ones allow

The drawings are those that training never saw. A concept is a name with at least seven of them: some are its examples,
and the others are to be found among all drawings. Its text is the name in a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray
from PIL import Image

import mobileclip
from benchmarks.harness import Bench, Case, Row, Value
from benchmarks.upgrade import unseen_drawings
from mobileclip.collections.concepts import Cache, examples_help
from mobileclip.data.images.transform import ImageSource

Matrix = NDArray[np.float32]


@attrs.frozen(kw_only=True)
class ConceptsBenchSpec(Bench):
    """What is measured.

    Args:
        data: what `python -m examples.icons` has made.
        model: that encodes the drawings.
        counts: of examples, a row each.
        fewest: drawings that a name has at least.
        num_seeds: choices of the examples.
    """

    data: Path = Path("outputs/icons")
    model: str = "icons"
    counts: tuple[int, ...] = (1, 3, 5)
    fewest: int = attrs.field(default=7, validator=validators.gt(1))
    num_seeds: int = attrs.field(default=3, validator=validators.gt(0))
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {"counts": (1, 2), "fewest": 4, "num_seeds": 1}

    def cases(self) -> Iterator[Case]:
        """Yield all of it."""
        yield Case(labels={"model": self.model}, measure=partial(measure, self))


def measure(spec: ConceptsBenchSpec) -> Iterator[Row]:
    """Yield the average precisions by the number of examples, of all names and seeds."""
    names, images, texts = _encoded(spec)
    concepts = sorted(name for name, count in Counter(names.tolist()).items() if count >= spec.fewest)
    for count in spec.counts:
        found = np.array(
            [
                [_precisions(names == name, images, texts, count, np.random.default_rng(seed)) for name in concepts]
                for seed in range(spec.num_seeds)
            ]
        )
        text, always, where, used = np.moveaxis(found, -1, 0)
        values = {
            "text": _percent(text),
            "always": _percent(always),
            "worse, always": _percent(always < text),
            "where they help": _percent(where),
            "worse, where they help": _percent(where < text),
            "used": _percent(used),
        }
        yield Row(
            case={"concepts": str(len(concepts)), "drawings": f"{len(names):,}", "examples": str(count)}, values=values
        )


def _precisions(
    shows: NDArray[np.bool_], images: Matrix, texts: Matrix, count: int, draw: np.random.Generator
) -> tuple[float, float, float, bool]:
    """Return what a text finds alone, with examples, and with them where they help, and whether they were used."""
    own = np.flatnonzero(shows)
    examples = draw.permutation(own)[:count]
    rest = np.ones(len(images), bool)
    rest[examples] = False
    text, yes, no = texts[own[0]], images[examples], images[:0]
    alone = images @ text
    with_them = alone + Cache.of(yes, no).added(images)
    used = examples_help(images.astype(np.float16), text, yes, no, examples.tolist())
    plain, learned = (average_precision(scores[rest], shows[rest]) for scores in (alone, with_them))
    return plain, learned, learned if used else plain, used


def average_precision(scores: Matrix, shows: NDArray[np.bool_]) -> float:
    """Return the mean of the precision at each picture that is looked for.

    Shape:
        `(pictures,)` both.
    """
    ranked = shows[np.argsort(-scores, kind="stable")]
    return float(np.mean((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked]))


def _percent(several: NDArray[np.generic]) -> Value:
    by_seed = 100 * several.astype(float).mean(axis=1)
    return Value(number=float(by_seed.mean()), unit="%", low=float(by_seed.min()), high=float(by_seed.max()))


def _encoded(spec: ConceptsBenchSpec) -> tuple[NDArray[np.str_], Matrix, Matrix]:
    """Return the names of drawings, and the embeddings of both."""
    drawings: Sequence[ImageSource]
    if spec.tiny:
        names = [f"square {number // 4}" for number in range(12)]
        drawings = [Image.new("RGB", (48, 48), (60 * (number // 4), 9 * (number % 4), 90)) for number in range(12)]
    else:
        drawings, names = unseen_drawings(spec.data)
    clip = mobileclip.load(spec.model)
    texts = clip.encode_text([f"a drawing of {name}" for name in names]).numpy()
    return np.array(names), clip.encode_image(drawings).numpy(), texts

"""What curation finds of planted noise: wrong captions, near duplicates and pictures of a test among emoji drawings.

Command:   python -m benchmarks curation        (with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 4 GiB of memory
Time:      some ten minutes, most of them for the teachers; a second run has them already
Result:    a table with precision and recall, and outputs/curation/curves.png with both at every threshold

The pairs are drawings that the teachers never saw, with their names. A share of them get another concept's name; a
share is copied, in other colours, smaller, or cropped; and altered copies of a test's pictures are put among them. The
teachers embed all, and `score`, `filter` and `dedup` are asked. Of each, the threshold with the highest F1 is told.
Drawings that are alike by themselves, such as a man and a woman of one vendor, count as false alarms.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
from attrs import validators
from PIL import Image

from benchmarks.harness import Bench, Case, Row, Value
from examples.quickstart.emoji import DataSplit, EmojiDataSpec, EmojiTeacherSpec, build_dataset, build_teachers
from mobileclip.charts import Line, Panel, write_chart
from mobileclip.data import AugmentationSpec, ImageTextSample, crop_augmentation, decode_image, write_shards
from mobileclip.datasets.curation import DuplicatesSpec, Scores, ScoreSpec, find_duplicates, score_shards
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble, reinforce
from mobileclip.strict import split_lines

KINDS = ("recoloured", "smaller", "cropped")
THRESHOLDS = tuple(round(0.7 + 0.02 * step, 2) for step in range(15))
_SIZE = 128


@attrs.frozen(kw_only=True)
class CurationBenchSpec(Bench):
    """What is planted.

    Args:
        folder: of everything that is made.
        concept_share: fraction of the concepts to take.
        wrong_share: fraction of the pairs that get another concept's name.
        copied_share: copies of pairs, as a fraction of them.
        num_leaks: altered pictures of a test that are put among the pairs.
        num_augmentations: views of every picture that the teachers embed.
        seed: of all choices.
    """

    folder: Path = Path("outputs/curation")
    concept_share: float = attrs.field(default=0.5, validator=[validators.gt(0), validators.le(1)])
    wrong_share: float = attrs.field(default=0.2, validator=[validators.gt(0), validators.lt(1)])
    copied_share: float = attrs.field(default=0.15, validator=[validators.gt(0), validators.lt(1)])
    num_leaks: int = attrs.field(default=50, validator=validators.gt(0))
    num_augmentations: int = attrs.field(default=4, validator=validators.gt(0))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"concept_share": 0.1, "num_leaks": 5, "num_augmentations": 1}

    def cases(self) -> Iterator[Case]:
        """Yield all that was planted."""
        yield Case(labels={"drawings": "of concepts that the teachers know"}, measure=partial(measure, self))


@attrs.frozen(kw_only=True, eq=False)
class Planted:
    """Pairs with what was done to them.

    Args:
        pairs: what is curated.
        tests: the test's pictures.
        wrong: keys of pairs with another concept's name.
        source: key of what a copy is a copy of, by the copy's key: of a pair, or of a test's picture.
        kind: how a copy was altered, by its key.
    """

    pairs: tuple[ImageTextSample, ...]
    tests: tuple[ImageTextSample, ...]
    wrong: frozenset[str]
    source: dict[str, str]
    kind: dict[str, str]


def altered(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Return a picture in other colours, smaller on white, or cropped."""
    width, height = image.size
    if kind == "recoloured":
        hue, saturation, value = image.convert("HSV").split()
        shift = int(rng.integers(40, 216))
        return Image.merge("HSV", (hue.point(lambda one: (one + shift) % 256), saturation, value)).convert("RGB")
    if kind == "smaller":
        scale = rng.uniform(0.6, 0.85)
        small = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        paper = Image.new("RGB", image.size, "white")
        left, top = (int(rng.integers(0, 1 + room)) for room in (width - small.width, height - small.height))
        paper.paste(small, (left, top))
        return paper
    side = rng.uniform(0.8, 0.95)
    left, top = (int(rng.uniform(0, (1 - side) * length)) for length in image.size)
    return image.crop((left, top, left + round(width * side), top + round(height * side))).resize(image.size)


def planted(spec: CurationBenchSpec, drawings: Sequence[ImageTextSample]) -> Planted:
    """Return pairs with wrong captions, copies and leaks among them.

    Args:
        spec: how many of each.
        drawings: with their names as the first caption.
    """
    rng = np.random.default_rng(spec.seed)
    shuffled = [drawings[index] for index in rng.permutation(len(drawings))]
    tests, pairs = shuffled[: spec.num_leaks], shuffled[spec.num_leaks :]
    source: dict[str, str] = {}
    kind: dict[str, str] = {}

    def copy(sample: ImageTextSample, name: str, number: int) -> ImageTextSample:
        how, key = KINDS[number % len(KINDS)], f"{name}-{number:04d}"
        source[key], kind[key] = sample.key, how
        return attrs.evolve(sample, key=key, image=_png(altered(decode_image(_image(sample)), how, rng)))

    chosen = rng.permutation(len(pairs))
    num_wrong, num_copied = round(spec.wrong_share * len(pairs)), round(spec.copied_share * len(pairs))
    wrong = {pairs[index].key for index in chosen[:num_wrong]}
    names = [sample.captions[0] for sample in pairs]
    named = []
    for sample in pairs:
        caption = sample.captions[0]
        while sample.key in wrong and caption == sample.captions[0]:
            caption = names[int(rng.integers(len(names)))]
        named.append(attrs.evolve(sample, captions=(caption,), syn_captions={}))
    copies = [
        copy(named[index], "copy", number) for number, index in enumerate(chosen[num_wrong : num_wrong + num_copied])
    ]
    leaks = [copy(sample, "leak", number) for number, sample in enumerate(tests)]
    mixed = [*named, *copies, *(attrs.evolve(one, captions=one.captions[:1], syn_captions={}) for one in leaks)]
    return Planted(
        pairs=tuple(mixed[index] for index in rng.permutation(len(mixed))),
        tests=tuple(attrs.evolve(one, captions=one.captions[:1], syn_captions={}) for one in tests),
        wrong=frozenset(wrong),
        source=source,
        kind=kind,
    )


@attrs.frozen(kw_only=True)
class Point:
    """How well something is found at a threshold.

    Args:
        threshold: of similarity.
        precision: fraction of what was reported that had been planted; 1 where nothing was.
        recall: fraction of what had been planted that was reported.
        recall_of: of each kind of alteration.
    """

    threshold: float
    precision: float
    recall: float
    recall_of: dict[str, float] = attrs.field(factory=dict)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / max(1e-9, self.precision + self.recall)


def wrong_captions(scores: Scores, truth: Planted) -> list[Point]:
    """Return how well a threshold of the similarity finds wrong captions: what lies below it is reported."""
    keys = [key for one in scores.shards for key in one.keys]
    values = np.concatenate([one.similarity("real") for one in scores.shards])
    is_wrong = np.array([key in truth.wrong for key in keys])
    points = []
    for threshold in np.quantile(values, np.linspace(0.02, 0.6, 30)):
        reported = values < threshold
        hits = int((reported & is_wrong).sum())
        points.append(
            Point(
                threshold=float(threshold),
                precision=hits / max(1, int(reported.sum())),
                recall=hits / int(is_wrong.sum()),
            )
        )
    return points


def copies_and_leaks(spec: CurationBenchSpec, truth: Planted) -> tuple[list[Point], list[Point]]:
    """Return how well each threshold finds copies, and pictures of the test."""
    found: dict[str, list[Point]] = {"copy": [], "leak": []}
    for threshold in THRESHOLDS:
        pairs = spec.folder / "pairs.tsv"
        find_duplicates(
            DuplicatesSpec(
                scores=spec.folder / "pairs" / "scores",
                output=spec.folder / "kept.npy",
                pairs=pairs,
                against=(spec.folder / "test" / "scores",),
                threshold=threshold,
                leak_threshold=threshold,
                seed=spec.seed,
            )
        )
        lines = [line.split("\t") for line in split_lines(pairs.read_text(encoding="utf-8"))[1:]]
        for name, why in (("copy", "duplicate"), ("leak", "test picture")):
            reported = [(line[1], line[3]) for line in lines if line[0] == why]
            found[name].append(_point(threshold, reported, name, truth))
    return found["copy"], found["leak"]


def _point(threshold: float, reported: Iterable[tuple[str, str]], name: str, truth: Planted) -> Point:
    """Judge reported pairs: a copy, and what it is a copy of, in either order; or two copies of one picture."""

    def origin(key: str) -> str:
        return truth.source.get(key, key)

    reported = list(reported)
    right = [pair for pair in reported if origin(pair[0]) == origin(pair[1])]
    caught = {key for pair in right for key in pair if key.startswith(f"{name}-")}
    planted_keys = [key for key in truth.source if key.startswith(f"{name}-")]
    return Point(
        threshold=threshold,
        precision=len(right) / len(reported) if reported else 1.0,
        recall=len(caught) / len(planted_keys),
        recall_of={
            kind: sum(key in caught for key in planted_keys if truth.kind[key] == kind)
            / max(1, sum(truth.kind[key] == kind for key in planted_keys))
            for kind in KINDS
        },
    )


@attrs.frozen(kw_only=True, eq=False)
class Taught:
    """Drawings, and teachers that have learned others of them.

    Args:
        split: the drawings that teachers never saw.
        teachers: the ensemble.
        policy: of the views that they embed.
    """

    split: DataSplit
    teachers: TeacherEnsemble
    policy: AugmentationSpec

    @classmethod
    def of(cls, data: EmojiDataSpec, split: str, folder: Path) -> Taught:
        """Return what a folder has already, or make it."""
        dataset = build_dataset(data, folder / "data")
        policy = crop_augmentation(_SIZE)
        teachers = build_teachers(EmojiTeacherSpec(image_size=_SIZE, augmentation=policy), dataset, folder / "teachers")
        return cls(split=dataset.splits[split], teachers=teachers, policy=policy)

    def score(self, samples: Sequence[ImageTextSample], folder: Path, *, num_augmentations: int) -> tuple[str, ...]:
        """Reinforce samples and score them, into `scores` in the folder; return the reinforced shards."""
        shards = write_shards(folder / "shards", samples, samples_per_shard=500)
        made = reinforce(
            ReinforcementSpec(
                source=list(map(str, shards)),
                output=str(folder / "reinforced"),
                augmentation=self.policy,
                num_augmentations=num_augmentations,
            ),
            teachers=self.teachers,
        )
        score_shards(ScoreSpec(shards=made.shards, output=folder / "scores", vectors=True))
        return made.shards


def measure(spec: CurationBenchSpec) -> Iterator[Row]:
    """Plant, embed and ask; yield what was found at the threshold with the highest F1, and draw all thresholds."""
    data = EmojiDataSpec(
        concept_share=spec.concept_share, concept_fraction=0.01, rendering_fraction=0.99, seed=spec.seed
    )
    taught = Taught.of(data, "test_renderings", spec.folder)
    truth = planted(spec, list(taught.split.samples()))
    for name, samples in (("pairs", truth.pairs), ("test", truth.tests)):
        taught.score(samples, spec.folder / name, num_augmentations=spec.num_augmentations)
    wrong = wrong_captions(Scores.open(spec.folder / "pairs" / "scores"), truth)
    copies, leaks = copies_and_leaks(spec, truth)
    found = {"wrong captions": wrong, "near duplicates": copies, "pictures of the test": leaks}
    _draw(spec.folder / "curves.png", found)
    num_planted = (len(truth.wrong), len(truth.source) - len(truth.tests), len(truth.tests))
    for (title, points), number in zip(found.items(), num_planted, strict=True):
        best = max(points, key=lambda one: one.f1)
        parts = {"precision": best.precision, "recall": best.recall, **best.recall_of}
        values = {"planted": Value(number=number), "threshold": Value(number=best.threshold)}
        values |= {name: Value(number=100 * one, unit="%") for name, one in parts.items()}
        yield Row(case={"looked for": title}, values=values)


def _draw(path: Path, found: dict[str, list[Point]]) -> None:
    panels: list[Panel] = []
    for title, points in found.items():
        x = [one.threshold for one in points]
        values = {name: [getattr(one, name) for one in points] for name in ("precision", "recall")}
        lines = [Line(x=x, y=y, label=name, marker=".") for name, y in values.items()]
        label = "precision and recall, of 1"
        panels.append(Panel(lines=lines, title=title, x_label="similarity", y_label=label, has_legend=True))
    write_chart(panels, path)


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "every drawing has its picture"
    return sample.image


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()

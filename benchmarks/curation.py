"""What curation finds of planted noise: wrong captions, near duplicates and pictures of a test among emoji drawings.

Command:   python -m benchmarks.curation        (with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 4 GiB of memory
Time:      some ten minutes, most of them for the teachers; a second run has them already
Result:    outputs/curation: report.md with precision and recall, curves.png with both at every threshold

The pairs are drawings that the teachers never saw, with their names. A share of them get another concept's name; a
share is copied, in other colours, smaller, or cropped; and altered copies of a test's pictures are put among them. The
teachers embed all, and `score`, `filter` and `dedup` are asked. Drawings that are alike by themselves, such as a man
and a woman of one vendor, count as false alarms.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import numpy as np
from attrs import validators
from PIL import Image

from benchmarks.command_line import empty_table, main
from mobileclip.data import ImageTextSample, crop_augmentation, decode_image, write_shards
from mobileclip.datasets.curation import DuplicatesSpec, Scores, ScoreSpec, find_duplicates, score_shards
from mobileclip.storage import write_text
from mobileclip.strict import split_lines
from mobileclip.terminal import print_table, say

KINDS = ("recoloured", "smaller", "cropped")
THRESHOLDS = tuple(round(0.7 + 0.02 * step, 2) for step in range(15))
_SIZE = 128


@attrs.frozen(kw_only=True)
class CurationBenchSpec:
    """What is planted.

    Args:
        output: folder of everything that is made.
        concept_share: fraction of the concepts to take.
        wrong_share: fraction of the pairs that get another concept's name.
        copied_share: copies of pairs, as a fraction of them.
        num_leaks: altered pictures of a test that are put among the pairs.
        num_augmentations: views of every picture that the teachers embed.
        seed: of all choices.
    """

    output: Path = Path("outputs/curation")
    concept_share: float = attrs.field(default=0.5, validator=[validators.gt(0), validators.le(1)])
    wrong_share: float = attrs.field(default=0.2, validator=[validators.gt(0), validators.lt(1)])
    copied_share: float = attrs.field(default=0.15, validator=[validators.gt(0), validators.lt(1)])
    num_leaks: int = attrs.field(default=50, validator=validators.gt(0))
    num_augmentations: int = attrs.field(default=4, validator=validators.gt(0))
    seed: int = 0


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
        pairs = spec.output / "pairs.tsv"
        find_duplicates(
            DuplicatesSpec(
                scores=spec.output / "scores",
                output=spec.output / "kept.npy",
                pairs=pairs,
                against=(spec.output / "test_scores",),
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


def run(spec: CurationBenchSpec) -> None:
    """Plant, embed, ask, and write what was found."""
    from examples.quickstart.emoji import EmojiDataSpec, EmojiTeacherSpec, build_dataset, build_teachers
    from mobileclip.reinforce import ReinforcementSpec, reinforce

    data = EmojiDataSpec(
        concept_share=spec.concept_share, concept_fraction=0.01, rendering_fraction=0.99, seed=spec.seed
    )
    dataset = build_dataset(data, spec.output / "data")
    policy = crop_augmentation(_SIZE)
    teachers = build_teachers(
        EmojiTeacherSpec(image_size=_SIZE, augmentation=policy), dataset, spec.output / "teachers"
    )
    truth = planted(spec, list(dataset.splits["test_renderings"].samples()))
    for name, samples in (("pairs", truth.pairs), ("test", truth.tests)):
        shards = write_shards(spec.output / name, samples, samples_per_shard=500)
        reinforced = spec.output / f"{name}_reinforced"
        reinforce(
            ReinforcementSpec(
                source=list(map(str, shards)),
                output=str(reinforced),
                augmentation=policy,
                num_augmentations=spec.num_augmentations,
            ),
            teachers=teachers,
        )
        scores = spec.output / ("scores" if name == "pairs" else "test_scores")
        score_shards(ScoreSpec(shards=sorted(map(str, reinforced.glob("*.tar"))), output=scores, vectors=True))
    wrong = wrong_captions(Scores.open(spec.output / "scores"), truth)
    copies, leaks = copies_and_leaks(spec, truth)
    _report(spec, truth, {"wrong captions": wrong, "near duplicates": copies, "pictures of the test": leaks})


def _report(spec: CurationBenchSpec, truth: Planted, found: dict[str, list[Point]]) -> None:
    columns = ("looked for", "threshold", "precision", "recall", *KINDS)
    num_copies = len(truth.source) - len(truth.tests)
    about = (
        f"{len(truth.pairs):,} pairs: {len(truth.wrong)} with wrong captions, {num_copies} altered copies, "
        f"{len(truth.tests)} altered pictures of a test. Of each, the threshold with the highest F1, chosen "
        "here; the last columns are the recall of each alteration."
    )
    lines = [about, "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    table = empty_table(columns, texts=("looked for",))
    for title, points in found.items():
        best = max(points, key=lambda one: one.precision * one.recall / max(1e-9, one.precision + one.recall))
        numbers = (best.precision, best.recall, *(best.recall_of[kind] for kind in KINDS if best.recall_of))
        cells = [title, f"{best.threshold:.2f}", *(f"{100 * one:.0f} %" for one in numbers)]
        cells += [""] * (len(columns) - len(cells))
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    write_text(spec.output / "report.md", "\n".join(lines) + "\n")
    _draw(spec.output / "curves.png", found)
    print_table(table)
    say(f"The report and the curves are in {spec.output}.")


def _draw(path: Path, found: dict[str, list[Point]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        thresholds = [one.threshold for one in points]
        for name in ("precision", "recall"):
            axes.plot(thresholds, [getattr(one, name) for one in points], marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("similarity")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "every drawing has its picture"
    return sample.image


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    main(CurationBenchSpec, run, __doc__)

"""What curation is worth to a student: trainings on noisy emoji pairs, whole and curated, and steps to equal top-5.

Command:   python -m benchmarks curation_training        (with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 4 GiB of memory
Time:      two and a half hours of one core: 30 trainings; a run that was stopped goes on
Result:    a table with steps and accuracy of every training, their ratio to the whole, and means over seeds

The pairs are drawings of concepts that the teachers never saw, with their names. A share of them get another concept's
name, and a share is copied in other colours, smaller, or cropped. One drawing of every concept that has three is held
out. Students of equal seeds start alike and see their pairs in batches of one size; they differ in which pairs there
are: all, what `filter` or `dedup` leave, what both leave, and all but what was planted, which no one could do better.
Another learns from the part of every batch that it finds harder than the teachers do.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor, nn

from benchmarks.curation import CurationBenchSpec, Planted, Taught, planted
from benchmarks.harness import Bench, Case, Results, Row, Value, markdown
from examples.learning_efficiency.scoring import HeldOut, score_student
from examples.quickstart.emoji import EmojiDataSpec
from examples.quickstart.spec import student
from examples.quickstart.stored import StoredBatches, StoredSamples, store_samples
from mobileclip.data import ImageTextSample, ImageTransform, crop_augmentation
from mobileclip.datasets.curation import (
    DuplicatesSpec,
    FilterSpec,
    Scores,
    filter_samples,
    find_duplicates,
)
from mobileclip.encoders import DualEncoder
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.storage import write_text
from mobileclip.terminal import say
from mobileclip.training import AdamWSpec, CosineSchedule, SelectionSpec, TrainingSpec, read_metrics, train

WHOLE, SELECTED = "everything", "selected"
WAYS = {
    WHOLE: "all pairs",
    "filtered": "the share whose captions fit best",
    "deduplicated": "without near duplicates",
    "both": "filtered, then without near duplicates",
    "oracle": "without what was planted",
    SELECTED: "all pairs, half of every larger batch chosen by learnability",
}
_TOP5 = "top5"
_TEST = "test"
_FEWEST_DRAWINGS = 3
_DONE = "done"


@attrs.frozen(kw_only=True)
class CurationTrainingSpec(Bench):
    """What is planted, and how the students train.

    Args:
        folder: of everything that is made.
        concept_share: fraction of the concepts to take; the teachers learn one half of these, the students the other.
        wrong_share: fraction of the pairs that get another concept's name.
        copied_share: copies of pairs, as a fraction of them.
        filter_share: what `filter` keeps.
        duplicate_threshold: from which on `dedup` takes two pictures for the same.
        ways: names of what is trained on; `everything` is what the others are compared with.
        num_seeds: trainings of each.
        total_steps: of a training.
        batch_size: pairs a step.
        evaluate_every_steps: steps between two looks at the held-out drawings.
        num_augmentations: views of every picture.
        seed: of what is planted; the trainings count on from it.
    """

    folder: Path = Path("outputs/curation_training")
    concept_share: float = attrs.field(default=0.5, validator=[validators.gt(0), validators.le(1)])
    wrong_share: float = attrs.field(default=0.2, validator=[validators.gt(0), validators.lt(1)])
    copied_share: float = attrs.field(default=0.15, validator=[validators.gt(0), validators.lt(1)])
    filter_share: float = attrs.field(default=0.8, validator=[validators.gt(0), validators.le(1)])
    duplicate_threshold: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    ways: tuple[str, ...] = attrs.field(default=tuple(WAYS), validator=validators.deep_iterable(validators.in_(WAYS)))
    num_seeds: int = attrs.field(default=5, validator=validators.gt(0))
    total_steps: int = attrs.field(default=1500, validator=validators.gt(1))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    evaluate_every_steps: int = attrs.field(default=50, validator=validators.gt(0))
    num_augmentations: int = attrs.field(default=4, validator=validators.gt(0))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {
        "concept_share": 0.1,
        "num_seeds": 1,
        "total_steps": 4,
        "batch_size": 8,
        "evaluate_every_steps": 2,
    }
    selects: ClassVar[frozenset[str]] = frozenset(("ways", "num_seeds"))

    def cases(self) -> Iterator[Case]:
        """Yield all trainings, seed by seed, so that what is unfinished has whole seeds."""
        held: list[Material] = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            for way in self.ways:
                yield Case(labels={"way": way, "seed": str(seed)}, measure=partial(measure, self, held, way, seed))

    def finish(self, results: Results) -> None:
        """Print the means over the seeds, and write them beside the results."""
        text = markdown(summary(results.rows))
        write_text(self.folder / "report.md", text)
        say(text)


@attrs.frozen(kw_only=True)
class Curve:
    """One training: top-5 accuracy on held-out drawings, in per cent, by the steps that were done."""

    way: str
    seed: int
    steps: tuple[int, ...]
    top5: tuple[float, ...]

    def steps_to(self, accuracy: float) -> int | None:
        """Return after how many steps a look first found this accuracy; None where none did."""
        return next((step for step, found in zip(self.steps, self.top5, strict=True) if found >= accuracy), None)


def held_out(
    drawings: Sequence[ImageTextSample], rng: np.random.Generator
) -> tuple[list[ImageTextSample], list[ImageTextSample]]:
    """Return the drawings that students learn from, and one of every concept that has three and more."""
    of_concept: dict[str, list[ImageTextSample]] = defaultdict(list)
    for sample in drawings:
        of_concept[sample.captions[0]].append(sample)
    chosen = {own[int(rng.integers(len(own)))].key for own in of_concept.values() if len(own) >= _FEWEST_DRAWINGS}
    return [one for one in drawings if one.key not in chosen], [one for one in drawings if one.key in chosen]


def kept_keys(scores: Scores, path: Path) -> frozenset[str]:
    """Return the keys of the samples that a list of uids has."""
    listed = {tuple(pair) for pair in np.load(path, allow_pickle=False).tolist()}
    return frozenset(
        key
        for one in scores.shards
        for key, uid in zip(one.keys, one.uids.tolist(), strict=True)
        if tuple(uid) in listed
    )


def curated(spec: CurationTrainingSpec, truth: Planted) -> dict[str, frozenset[str]]:
    """Return the keys that every way of curation leaves."""
    folder = spec.folder / "scores"
    lists = {name: spec.folder / f"{name}.npy" for name in ("filtered", "deduplicated", "both")}
    filter_samples(FilterSpec(scores=folder, output=lists["filtered"], share=spec.filter_share))
    for name, keep in (("deduplicated", None), ("both", lists["filtered"])):
        find_duplicates(
            DuplicatesSpec(
                scores=folder, output=lists[name], keep=keep, threshold=spec.duplicate_threshold, seed=spec.seed
            )
        )
    scores = Scores.open(folder)
    everything = frozenset(sample.key for sample in truth.pairs)
    return {
        WHOLE: everything,
        **{name: kept_keys(scores, path) for name, path in lists.items()},
        "oracle": everything - truth.wrong - truth.source.keys(),
        SELECTED: everything,
    }


def places_of(samples: StoredSamples, keys: frozenset[str]) -> Tensor:
    """Return where the samples with these keys are, in their order."""
    return torch.tensor([place for place, key in enumerate(samples.keys) if key in keys])


@attrs.frozen(kw_only=True, eq=False)
class Material:
    """What every training reads.

    Args:
        samples: of all pairs.
        keys: that every way keeps.
        test: the held-out drawings.
        dims: the teachers'.
        logit_scales: the teachers'.
    """

    samples: StoredSamples
    keys: Mapping[str, frozenset[str]]
    test: HeldOut
    dims: tuple[int, ...]
    logit_scales: tuple[float, ...]


def train_way(spec: CurationTrainingSpec, material: Material, way: str, seed: int) -> Curve:
    """Train a student, or go on with it, or read what an earlier run has found."""
    folder = spec.folder / "runs" / way / str(seed)
    metrics = folder / "metrics.jsonl"
    if not (folder / _DONE).exists():
        share = 0.5 if way == SELECTED else 1.0
        torch.manual_seed(seed)
        train(
            TrainingSpec(
                # Nothing is distilled: what is compared is which pairs there are.
                loss=ReinforcedLossSpec(
                    teacher_dims=material.dims, teacher_logit_scales=material.logit_scales, distill_weight=0
                ),
                schedule=CosineSchedule(
                    peak=3e-3, final=3e-5, warmup_steps=spec.total_steps // 10, total_steps=spec.total_steps
                ),
                optimizer=AdamWSpec(weight_decay=0.1),
                ema_decay=0.98,
                selection=SelectionSpec(share=share),
                seed=seed,
                log_every_steps=spec.evaluate_every_steps,
                checkpoint_every_steps=100,
                evaluate_every_steps=spec.evaluate_every_steps,
            ),
            model=student().build(),
            batches=StoredBatches(
                samples=material.samples,
                batch_size=round(spec.batch_size / share),
                seed=seed,
                synthetic_captions=False,
                teachers=(0,) if way == SELECTED else (),
                members=places_of(material.samples, material.keys[way]),
            ),
            output=folder,
            evaluate=partial(_look, material),
        )
        write_text(folder / _DONE, "")
    looks = [line for line in read_metrics(metrics) if _TOP5 in line]
    return Curve(
        way=way,
        seed=seed,
        steps=tuple(int(line["step"]) + 1 for line in looks),
        top5=tuple(line[_TOP5] for line in looks),
    )


def _look(material: Material, model: nn.Module, _: int) -> dict[str, float]:
    assert isinstance(model, DualEncoder), "the student is one"
    return {_TOP5: score_student(model, {_TEST: material.test})[_TEST].top5}


def measure(spec: CurationTrainingSpec, held: list[Material], way: str, seed: int) -> list[Row]:
    """Return what a training came to, and after how many steps it was as good as the one on everything is at its end.

    Args:
        spec: the choices.
        held: the material, once it is prepared.
        way: what it is trained on.
        seed: of the training.
    """
    if not held:
        held.append(prepared(spec))
    curve = train_way(spec, held[0], way, seed)
    values = {"pairs": Value(number=len(held[0].keys[way])), _TOP5: Value(number=curve.top5[-1], unit="%")}
    whole = train_way(spec, held[0], WHOLE, seed)
    steps = curve.steps_to(whole.top5[-1])
    if steps is not None:
        values |= {"steps to equal": Value(number=steps), "of all steps": Value(number=steps / whole.steps[-1])}
    return [Row(values=values)]


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return the mean of each way over its seeds, with one standard deviation to both sides."""
    found = []
    for way in dict.fromkeys(row.case["way"] for row in rows):
        own = [row for row in rows if row.case["way"] == way]
        values = {}
        for name in dict.fromkeys(name for row in own for name in row.values):
            several = [row.values[name].number for row in own if name in row.values]
            mean, deviation = statistics.mean(several), statistics.stdev(several) if len(several) > 1 else 0.0
            ends = {"low": mean - deviation, "high": mean + deviation} if deviation else {}
            values[name] = Value(number=mean, unit=own[0].values[name].unit if name in own[0].values else "", **ends)
        values["seeds that got there"] = Value(number=sum("steps to equal" in row.values for row in own))
        found.append(Row(case={"way": way}, values=values, notes={"trained on": WAYS[way]}))
    return found


def prepared(spec: CurationTrainingSpec) -> Material:
    """Plant, embed and curate; what is there is not done again."""
    data = EmojiDataSpec(concept_share=spec.concept_share, concept_fraction=0.5, seed=spec.seed)
    taught = Taught.of(data, "test_concepts", spec.folder)
    drawings, tests = held_out(list(taught.split.samples()), np.random.default_rng(spec.seed))
    truth = planted(
        CurationBenchSpec(wrong_share=spec.wrong_share, copied_share=spec.copied_share, num_leaks=1, seed=spec.seed),
        drawings,
    )
    # What is held out here is none of its test's pictures.
    truth = attrs.evolve(truth, pairs=tuple(one for one in truth.pairs if not one.key.startswith("leak-")))
    # Training reads a set of synthetic captions, and looks at the real ones alone.
    pairs = [attrs.evolve(one, syn_captions={"syn_text": one.captions}) for one in truth.pairs]
    shards = taught.score(pairs, spec.folder, num_augmentations=spec.num_augmentations)
    transform = ImageTransform(student().image.input)
    pixels = [transform.pixels(one.image) for one in tests if one.image is not None]
    return Material(
        samples=store_samples(shards, augmentation=crop_augmentation(transform.image_input.size), student=student()),
        keys=curated(spec, truth),
        test=HeldOut(
            pixels={transform.image_input: torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)},
            labels=torch.tensor(taught.split.class_indices(tests)),
            class_names=taught.split.class_names,
        ),
        dims=taught.teachers.dims,
        logit_scales=taught.teachers.logit_scales,
    )

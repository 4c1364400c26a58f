"""What curation is worth to a student: trainings on noisy emoji pairs, whole and curated, and steps to equal top-5.

Command:   python -m benchmarks.curation_training        (with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 4 GiB of memory
Time:      two and a half hours of one core: 30 trainings, each of which says what the rest takes; a run that was
           stopped goes on
Result:    outputs/curation_training: report.md with steps and accuracy of every way, and their ratio to the whole

The pairs are drawings of concepts that the teachers never saw, with their names. A share of them get another concept's
name, and a share is copied in other colours, smaller, or cropped. One drawing of every concept that has three is held
out. Students of equal seeds start alike and see their pairs in batches of one size; they differ in which pairs there
are: all, what `filter` or `dedup` leave, what both leave, and all but what was planted, which no one could do better.
Another learns from the part of every batch that it finds harder than the teachers do.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor, nn

from benchmarks.command_line import empty_table, main
from benchmarks.curation import CurationBenchSpec, Planted, planted
from examples.learning_efficiency.scoring import HeldOut, score_student
from examples.quickstart.spec import student
from examples.quickstart.stored import StoredBatches, StoredSamples, store_samples
from mobileclip.data import ImageTextSample, ImageTransform, crop_augmentation, write_shards
from mobileclip.datasets.curation import (
    DuplicatesSpec,
    FilterSpec,
    Scores,
    ScoreSpec,
    filter_samples,
    find_duplicates,
    score_shards,
)
from mobileclip.encoders import DualEncoder
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.storage import write_text
from mobileclip.terminal import print_table, say
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
_TEACHER_SIZE = 128
_FEWEST_DRAWINGS = 3
_DONE = "done"


@attrs.frozen(kw_only=True)
class CurationTrainingSpec:
    """What is planted, and how the students train.

    Args:
        output: folder of everything that is made.
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

    output: Path = Path("outputs/curation_training")
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
    folder = spec.output / "scores"
    lists = {name: spec.output / f"{name}.npy" for name in ("filtered", "deduplicated", "both")}
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
    folder = spec.output / "runs" / way / str(seed)
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


def curves(spec: CurationTrainingSpec, material: Material) -> Iterator[Curve]:
    """Yield all trainings, seed by seed, so that what is unfinished has whole seeds."""
    cells = [(way, spec.seed + number) for number in range(spec.num_seeds) for way in spec.ways]
    for place, (way, seed) in enumerate(cells, 1):
        started = time.monotonic()
        curve = train_way(spec, material, way, seed)
        seconds = time.monotonic() - started
        rest = (len(cells) - place) * seconds / 3600
        say(
            f"{place} of {len(cells)}: {way}, seed {seed}: top-5 {curve.top5[-1]:.1f} %; the rest may take {rest:.1f} h"
        )
        yield curve


def report(spec: CurationTrainingSpec, material: Material, found: Sequence[Curve]) -> str:
    """Write and print what came out: of every way, and seed by seed against everything."""
    of_seed = {one.seed: one for one in found if one.way == WHOLE}
    columns = ("way", "pairs", "top-5", "steps to equal", "of all steps", "seeds that got there")
    lines = ["| " + " | ".join((*columns, "trained on")) + " |", "|" + " --- |" * (len(columns) + 1)]
    table = empty_table(columns, texts=("way",))
    for way in spec.ways:
        own = [one for one in found if one.way == way]
        if not own:
            continue
        last = [one.top5[-1] for one in own]
        spread = f" ± {statistics.stdev(last):.1f}" if len(last) > 1 else ""
        pairs = [(one.steps_to(of_seed[one.seed].top5[-1]), of_seed[one.seed]) for one in own if one.seed in of_seed]
        reached = [(steps, whole) for steps, whole in pairs if steps is not None]
        steps = f"{statistics.mean(steps for steps, _ in reached):.0f}" if reached else ""
        ratio = f"{statistics.mean(steps / whole.steps[-1] for steps, whole in reached):.2f}" if reached else ""
        cells = [way, f"{len(material.keys[way]):,}", f"{statistics.mean(last):.1f}{spread} %", steps, ratio]
        cells.append(f"{len(reached)} of {len(pairs)}")
        table.add_row(*cells)
        lines.append("| " + " | ".join((*cells, WAYS[way])) + " |")
    about = (
        f"{len(material.test.labels):,} held-out drawings, {len(material.test.class_names):,} names, "
        f"{spec.total_steps:,} steps of {spec.batch_size}. Steps to equal: after how many a look first finds the top-5 "
        "that everything has at its end, with the same seed."
    )
    text = "\n".join([about, "", *lines]) + "\n"
    write_text(spec.output / "report.md", text)
    print_table(table)
    say(about)
    return text


def prepared(spec: CurationTrainingSpec) -> Material:
    """Plant, embed and curate; what is there is not done again."""
    from examples.quickstart.emoji import EmojiDataSpec, EmojiTeacherSpec, build_dataset, build_teachers
    from mobileclip.reinforce import ReinforcementSpec, reinforce

    data = EmojiDataSpec(concept_share=spec.concept_share, concept_fraction=0.5, seed=spec.seed)
    dataset = build_dataset(data, spec.output / "data")
    policy = crop_augmentation(_TEACHER_SIZE)
    teachers = build_teachers(
        EmojiTeacherSpec(image_size=_TEACHER_SIZE, augmentation=policy), dataset, spec.output / "teachers"
    )
    split = dataset.splits["test_concepts"]
    drawings, tests = held_out(list(split.samples()), np.random.default_rng(spec.seed))
    truth = planted(
        CurationBenchSpec(wrong_share=spec.wrong_share, copied_share=spec.copied_share, num_leaks=1, seed=spec.seed),
        drawings,
    )
    # What is held out here is none of its test's pictures.
    truth = attrs.evolve(truth, pairs=tuple(one for one in truth.pairs if not one.key.startswith("leak-")))
    # Training reads a set of synthetic captions, and looks at the real ones alone.
    pairs = [attrs.evolve(one, syn_captions={"syn_text": one.captions}) for one in truth.pairs]
    shards = write_shards(spec.output / "pairs", pairs, samples_per_shard=500)
    made = reinforce(
        ReinforcementSpec(
            source=list(map(str, shards)),
            output=str(spec.output / "reinforced"),
            augmentation=policy,
            num_augmentations=spec.num_augmentations,
        ),
        teachers=teachers,
    )
    score_shards(ScoreSpec(shards=made.shards, output=spec.output / "scores", vectors=True))
    transform = ImageTransform(student().image.input)
    pixels = [transform.pixels(one.image) for one in tests if one.image is not None]
    return Material(
        samples=store_samples(
            made.shards, augmentation=crop_augmentation(transform.image_input.size), student=student()
        ),
        keys=curated(spec, truth),
        test=HeldOut(
            pixels={transform.image_input: torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)},
            labels=torch.tensor(split.class_indices(tests)),
            class_names=split.class_names,
        ),
        dims=teachers.dims,
        logit_scales=teachers.logit_scales,
    )


def run(spec: CurationTrainingSpec) -> None:
    """Train everything, and write what was found."""
    material = prepared(spec)
    for way in spec.ways:
        say(f"{way}: {len(material.keys[way]):,} pairs, {WAYS[way]}")
    report(spec, material, list(curves(spec, material)))


if __name__ == "__main__":
    main(CurationTrainingSpec, run, __doc__)

"""Equal core-minutes: distillation with its teacher's cost against captions with the teacher's class loss.

Command:   python -m studies.learning_efficiency.equal --minutes 20    (with the extra `quickstart` installed)
Hardware:  2 CPU cores, about 8 GiB of memory, no GPU
Time:      the minutes given; about thirty calls of twenty minutes on one core; each goes on where the last one ended
Result:    studies/learning_efficiency/equal.jsonl: what each call spent and finished, and a table of what is there

PROTOCOL.md says what is compared, and was written before anything was run.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from examples.icons import build_dataset
from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES
from examples.quickstart.emoji.on_disk import DrawnDataset
from mobileclip.data import Batch, ReinforcedBatch, Tokenizer
from mobileclip.encoders import DualEncoder
from mobileclip.losses import ReinforcedLossSpec, losses
from mobileclip.terminal import say
from mobileclip.training import ImageTextObjective, TrainingSpec, build_objective, train
from mobileclip.training.distributed import World
from studies.learning_efficiency.finetune import PROMPTS, FineTuneSpec
from studies.learning_efficiency.results import append, read_lines
from studies.learning_efficiency.scoring import Scores, held_out, score_student
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.stores import cell_batches, load_store, make_stores, store_of
from studies.learning_efficiency.strict import STRICT, read_strict, stricter
from studies.learning_efficiency.students import train_student
from studies.learning_efficiency.tables import table
from studies.learning_efficiency.teachers import build_teachers
from studies.learning_efficiency.variants import FIRST, VARIANTS

LINES = Path(__file__).with_name("equal.jsonl")
SHARED = (1, 3, 10, 30)
_NO_GLYPH = "the glyph is not in training"
ENDPOINTS = (f"{TITLES[TEST_PICTURES]}, {_NO_GLYPH}", f"{TITLES[TEST_SET]}, {_NO_GLYPH}", TEST_PICTURES, TEST_NAMES)
_NUM_RESAMPLES = 10_000


@attrs.frozen(kw_only=True)
class EqualSpec:
    """The choices of the experiment.

    Args:
        output: folder of data, teachers, stores and trainings.
        lines: file of what was spent and finished.
        minutes: after which the call ends; 0 for the table of what is finished alone.
        study: of learning efficiency, whose data, student and schedules these are.
        epochs: of a teacher.
        steps: of a distilled student.
        pilot: steps that the time of a captions step is measured with.
        num_classes: that a captions step compares with.
        seeds: each has a fresh teacher; two calls of different seeds may run at once.
    """

    output: Path = Path("outputs/equal")
    lines: Path = LINES
    minutes: float = 20.0
    study: EfficiencySpec = EfficiencySpec(num_processes=1)
    epochs: int = 8
    steps: int = 12_800
    pilot: int = 400
    num_classes: int = 512
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def digest(self) -> str:
        """A digest of what every line depends on."""
        own = (self.study.study, self.epochs, self.steps, self.pilot, self.num_classes)
        return hashlib.sha256(repr(own).encode()).hexdigest()[:12]

    def of_seed(self, seed: int) -> EfficiencySpec:
        """Return the study with the fresh teacher of a seed."""
        teacher = FineTuneSpec(
            name=FIRST, seed=100 + seed, epochs=self.epochs, image_size=self.study.teachers[0].image_size
        )
        return attrs.evolve(self.study, output=self.output / f"seed{seed}", teachers=(teacher,))


@attrs.frozen(kw_only=True)
class Line:
    """What a call spent on a unit, and what came out where the unit is finished.

    Args:
        study: a digest of the choices.
        unit: `teacher`, `store`, `distillation`, `pilot` or `captions`.
        seed: of the teacher and the student.
        processor_seconds: of this call, with the processes that it started.
        done: whether the unit is finished.
        shared: students that share the teacher, of a captions unit.
        steps: of the student.
        scores: by part of the held-out drawings, with every picture's hit.
    """

    study: str
    unit: Literal["teacher", "store", "distillation", "pilot", "captions"]
    seed: int
    processor_seconds: float
    done: bool
    shared: int = 0
    steps: int = 0
    scores: Mapping[str, Scores] | None = None


@losses.register("contrastive_and_classes")
@attrs.frozen(kw_only=True)
class ClassLossSpec(ReinforcedLossSpec):
    """The contrastive loss, and cross-entropy over class names in a prompt, of equal weight.

    Args:
        num_classes: that a step compares with: the batch's, and others by chance.
    """

    num_classes: int = 512


class ClassObjective(ImageTextObjective):
    """`contrastive + cross-entropy`, with the classes of `prompts` and `labels`, which `captions_student` sets."""

    prompts: Tensor
    labels: Mapping[str, int]

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the contrastive term, no distillation, and the sum of both terms."""
        assert isinstance(batch, ReinforcedBatch), "the batches of a store"
        assert isinstance(self.spec.loss, ClassLossSpec), "the loss decides which objective is built"
        embeddings, _ = self._embed(batch, progress)
        terms = self.loss(**embeddings)
        labels = torch.tensor([self.labels.get(key, -1) for key in batch.keys])
        known = labels >= 0
        total = terms.total
        if int(known.sum()) > 1:
            own = torch.tensor(sorted(set(labels[known].tolist())))
            others = torch.randperm(len(self.prompts[0]))
            others = others[~torch.isin(others, own)][: max(0, self.spec.loss.num_classes - len(own))]
            chosen = torch.cat([own, others])
            prompt = self.prompts[int(torch.randint(len(self.prompts), ()))]
            classes = F.normalize(self.model.encode_text(prompt[chosen]), dim=-1)
            logits = embeddings["logit_scale"] * embeddings["image"][known] @ classes.T
            total = total + F.cross_entropy(logits, torch.searchsorted(own, labels[known]))
        return terms.contrastive, terms.distillation, total


@build_objective.register
def _(loss: ClassLossSpec, *, spec: TrainingSpec, model: Any, world: World) -> ClassObjective:
    del loss
    return ClassObjective(spec, model=model, world=world)


def captions_student(spec: EqualSpec, seed: int, steps: int, dataset: DrawnDataset, folder: Path) -> DualEncoder:
    """Train a student on captions and classes, or go on from its last checkpoint.

    Args:
        spec: settings of the study.
        seed: of its weights, its order and its choices.
        steps: how many.
        dataset: whose names are the classes.
        folder: of its checkpoints.
    """
    study, cell = spec.of_seed(seed), Cell(variant="captions", share=1.0, budget=steps, seed=seed)
    tokenizer = Tokenizer(study.student.text.input)
    names = list(dataset.train.class_names)
    position = {name: number for number, name in enumerate(names)}
    ClassObjective.prompts = torch.stack([tokenizer([prompt.format(name) for name in names]) for prompt in PROMPTS])
    ClassObjective.labels = {
        one.key: position[one.metadata["label"]] for one in dataset.train.samples() if one.metadata["label"] in position
    }
    torch.manual_seed(seed)
    samples = load_store(study, store_of(cell, study), VARIANTS["captions"])
    trained = train(
        study.training(
            ClassLossSpec(teacher_dims=(), distill_weight=0.0, num_classes=spec.num_classes), budget=steps, seed=seed
        ),
        model=study.student.build(),
        batches=cell_batches(study, cell, samples),
        output=folder,
    ).model
    assert isinstance(trained, DualEncoder), "a dual encoder was given"
    return trained


def run(spec: EqualSpec) -> list[Line]:
    """Do units until the time is over, and return all lines.

    Raises:
        ValueError: if the file of lines is of other choices.
        Interrupted: when the time is over; what was finished is kept.
    """
    if not spec.minutes:
        return read_lines(spec.lines, Line, study=spec.digest)
    # As a stop by hand: the unit under way saves what it has.
    timer = threading.Timer(60 * spec.minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    torch.set_num_threads(1)
    dataset = build_dataset(attrs.evolve(spec.study.data, output=spec.output / "data"))
    for seed in spec.seeds:
        _seed(spec, seed, dataset)
    timer.cancel()
    say("all is done")
    return read_lines(spec.lines, Line, study=spec.digest)


def _seed(spec: EqualSpec, seed: int, dataset: DrawnDataset) -> None:
    study = spec.of_seed(seed)
    cell = Cell(variant="distillation", share=1.0, budget=spec.steps, seed=seed)
    # Views and captions, which both arms read, are counted on neither side.
    make_stores(study, [attrs.evolve(cell, variant="captions")], {}, dataset.train)
    parts = held_out(dataset, [study.student.image.input])
    parts |= stricter(parts, read_strict(spec.output / STRICT, dataset))
    runs = study.output / "runs"
    if _waits(spec, "teacher", seed):
        with _counted(spec, "teacher", seed):
            build_teachers(study, dataset, [(FIRST,)])
    if _waits(spec, "store", seed):
        teachers = build_teachers(study, dataset, [(FIRST,)])
        with _counted(spec, "store", seed):
            make_stores(study, [cell], teachers, dataset.train)
    if _waits(spec, "distillation", seed):
        with _counted(spec, "distillation", seed, steps=spec.steps) as scores:
            samples = load_store(study, store_of(cell, study), VARIANTS["distillation"])
            model = train_student(study, cell, samples, runs / "distillation")
            scores["of"] = lambda: score_student(model, parts)
    if _waits(spec, "pilot", seed):
        with _counted(spec, "pilot", seed, steps=spec.pilot):
            captions_student(spec, seed, spec.pilot, dataset, runs / "pilot")
    for shared in SHARED:
        if _waits(spec, "captions", seed, shared):
            steps = captions_steps(spec, seed, shared)
            with _counted(spec, "captions", seed, shared=shared, steps=steps) as scores:
                model = captions_student(spec, seed, steps, dataset, runs / f"captions{shared}")
                scores["of"] = lambda model=model: score_student(model, parts)


def captions_steps(spec: EqualSpec, seed: int, shared: int) -> int:
    """Return the steps of captions that cost what a distilled student does, of so many that share their teacher."""
    lines = [one for one in read_lines(spec.lines, Line, study=spec.digest) if one.seed == seed]
    seconds = {
        unit: sum(one.processor_seconds for one in lines if one.unit == unit)
        for unit in ("teacher", "store", "distillation", "pilot")
    }
    whole = (seconds["teacher"] + seconds["store"]) / shared + seconds["distillation"]
    return max(2, round(whole * spec.pilot / seconds["pilot"]))


def _waits(spec: EqualSpec, unit: str, seed: int, shared: int = 0) -> bool:
    lines = read_lines(spec.lines, Line, study=spec.digest)
    return not any(one.done and (one.unit, one.seed, one.shared) == (unit, seed, shared) for one in lines)


@contextmanager
def _counted(spec: EqualSpec, unit: Any, seed: int, *, shared: int = 0, steps: int = 0) -> Iterator[dict[str, Any]]:
    """Add a line of what a unit spends, interrupted or not; what `of` returns is measured, and not counted."""
    scores: dict[str, Any] = {}
    began, spent, done = sum(os.times()[:4]), 0.0, False
    try:
        yield scores
        spent, done = sum(os.times()[:4]) - began, True
    finally:
        append(
            spec.lines,
            Line(
                study=spec.digest,
                unit=unit,
                seed=seed,
                processor_seconds=round(spent or sum(os.times()[:4]) - began, 1),
                done=done,
                shared=shared,
                steps=steps,
                scores=scores["of"]() if done and scores else None,
            ),
        )


def report(lines: Sequence[Line]) -> list[str]:
    """Return differences in top-5 as a table: mean, 95 % interval over seeds and pictures, and each seed's."""
    distilled = {one.seed: one for one in lines if one.unit == "distillation" and one.scores}
    rows = []
    for part in ENDPOINTS:
        for shared in SHARED:
            captions = {
                one.seed: one for one in lines if one.unit == "captions" and one.scores and one.shared == shared
            }
            # A few icons make no drawings of some parts.
            both = sorted(distilled.keys() & captions.keys())
            if seeds := [one for one in both if part in (distilled[one].scores or {})]:
                gains = np.stack([_hits(distilled[one], part) - _hits(captions[one], part) for one in seeds])
                low, high = interval(gains)
                each = ", ".join(f"{100 * one:+.1f}" for one in gains.mean(axis=1))
                cells = (f"{100 * gains.mean():+.1f} ({low:+.1f} to {high:+.1f})", each)
                rows.append((TITLES.get(part, part), str(shared), *cells))
    return table(("top-5, distillation less captions", "students that share", "points, 95 % interval", "by seed"), rows)


def interval(gains: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Return the central 95 % of mean differences in points, with seeds and pictures drawn anew.

    Shape:
        gains: (seeds, pictures), from -1 to 1.
    """
    rng = np.random.default_rng(0)
    seeds, pictures = gains.shape
    means = [
        gains[rng.integers(seeds, size=seeds)].mean(axis=0)[rng.integers(pictures, size=pictures)].mean()
        for _ in range(_NUM_RESAMPLES)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return 100 * float(low), 100 * float(high)


def _hits(line: Line, part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert line.scores is not None, "chosen by the caller"
    hits = line.scores[part].hits
    assert hits is not None, "every line has them"
    return hits.bits("top5").astype(np.float64)


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(EqualSpec, "equal", __doc__, default=EqualSpec()) as chosen:
        say("\n".join(report(run(chosen))))

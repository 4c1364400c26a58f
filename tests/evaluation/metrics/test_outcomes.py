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
    proportion_interval,
    score,
    summarize,
)
from mobileclip.evaluation.intervals import (
    class_weights,
    clustered_outcomes,
    macro_f1_outcomes,
    outcomes_of,
    worst_group_outcomes,
)
from mobileclip.evaluation.metrics import macro_f1_values
from mobileclip.evaluation.results import ModelResults, differences
from mobileclip.evaluation.tables import compared_pairs, results_table
from tests.datasets.test_opening import class_folder
from tests.evaluation.tasks.test_scoring import case_of
from tests.evaluation.test_own_data import colours  # noqa: F401  a fixture

KEYS = tuple(f"{number:03d}" for number in range(200))


def features_of(labels=None, num_captions=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = 60
    texts = 5 if labels is not None else int(num_captions.sum())
    return Features.of(
        keys=KEYS[:images],
        image=torch.randn(images, 8, generator=generator),
        text=torch.randn(texts, 8, generator=generator),
        labels=labels,
        num_captions=num_captions,
    )


@pytest.mark.parametrize("name", ["mine", "vtab-pets", "captions"])
def test_their_mean_is_the_main_metric(name):
    if name == "captions":
        benchmark = Benchmark(name=name, kind="retrieval", class_names=(), templates=())
        features = features_of(num_captions=torch.arange(60) % 3 + 1)
    else:
        benchmark = Benchmark(name=name, kind="classification", class_names=tuple("abcde"), templates=("{}",))
        # Classes of very different sizes, and one without an image.
        features = features_of(labels=torch.tensor([0] * 40 + [1] * 15 + [2] * 4 + [3]))
    scored = score(benchmark, features)
    assert scored.outcomes is not None
    assert float(scored.outcomes.values.mean()) == pytest.approx(scored.main_metric, abs=1e-6)
    interval = scored.outcomes.interval
    assert 0 <= interval.low < scored.main_metric < interval.high <= 1
    # Where one class of a single image makes a quarter of the metric, fewer images speak.
    assert scored.outcomes.num_effective == pytest.approx(60) or name == "vtab-pets"
    assert scored.outcomes.num_effective <= 60 + 1e-9


@pytest.mark.parametrize("name", ["wilds-fmow", "wilds-iwildcam", "dollar_street", "fairness-geode"])
def test_metrics_that_are_no_mean_have_intervals_and_paired_tests_too(name):
    case = case_of(name, fields=3, seed=4)
    scored = score(case.benchmark, case.features)
    interval = scored.outcomes.interval
    assert 0 <= interval.low < scored.main_metric < interval.high <= 1
    other = case.features.with_tensors(image=case.features.image + 0.5 * case_of(name, seed=5).features.image)
    changed = score(case.benchmark, other)
    found = changed.outcomes.compared_with(scored.outcomes)
    assert found.difference == pytest.approx(changed.main_metric - scored.main_metric, abs=1e-6)
    assert found.interval.low < found.difference < found.interval.high
    if name != "wilds-iwildcam":
        regrouped = case.features.with_tensors(metadata=case.features.metadata.flip(0))
        assert score(case.benchmark, regrouped).outcomes.compared_with(scored.outcomes) is None


def test_the_interval_of_macro_f1_holds_the_true_one_as_often_as_it_says():
    rng, shares = np.random.default_rng(0), np.array([0.5, 0.3, 0.12, 0.08])
    confusion = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    joint = shares[:, None] * confusion
    truth = (2 * joint.diagonal() / (joint.sum(0) + joint.sum(1))).mean()
    held = 0
    for _ in range(400):
        drawn = rng.choice(16, size=250, p=joint.ravel())
        labels, predicted = torch.from_numpy(drawn // 4), torch.from_numpy(drawn % 4)
        interval = macro_f1_outcomes(drawn.astype(str), macro_f1_values(predicted, labels).numpy(), labels).interval
        held += interval.low <= truth <= interval.high
    assert 0.93 < held / 400 < 0.99


def test_macro_f1_of_images_that_are_all_right_is_as_sure_as_the_classes_leave():
    labels = torch.tensor([0] * 90 + [1] * 10)
    outcomes = macro_f1_outcomes(KEYS[:100], macro_f1_values(labels, labels).numpy(), labels)
    assert outcomes.interval == proportion_interval(36, 36)


def test_questions_about_one_image_count_as_one_image():
    keys, right = ["a", "a", "b", "c", "c", "c"], [1, 0, 1, 0, 0, 1]
    outcomes = clustered_outcomes(keys, right)
    assert float(outcomes.values.mean()) == pytest.approx(0.5)
    assert outcomes.num_effective == pytest.approx(36 / (4 + 1 + 9))
    assert outcomes.keys == ("a", "b", "c")
    by_group = clustered_outcomes(keys, right, class_weights(["x", "y", "y", "y", "y", "y"]))
    assert float(by_group.values.mean()) == pytest.approx((1 + 2 / 5) / 2)
    # What does not count leaves no image behind.
    assert len(clustered_outcomes(keys, right, [0.5, 0, 0.5, 0, 0, 0]).values) == 2


def test_the_interval_of_the_worst_group_is_made_of_those_of_all_groups():
    groups, values = [2] * 50 + [0] * 4 + [5] * 100, [1] * 30 + [0] * 20 + [1] * 3 + [0] + [1] * 90 + [0] * 10
    outcomes = worst_group_outcomes([str(number) for number in range(154)], values, groups)
    assert outcomes.value == pytest.approx(30 / 50)
    assert outcomes.interval.low == proportion_interval(3, 4).low < proportion_interval(30, 50).low
    assert outcomes.interval.high == proportion_interval(30, 50, confidence=1 - 0.05 / 3).high


def test_the_interval_of_a_difference_in_the_worst_group_holds_the_true_one():
    """Of two models with 0.6 and 0.75 in the worst of three groups, on the same images; half of chance is shared."""
    rng, held = np.random.default_rng(0), 0
    keys, groups = [str(number) for number in range(300)], np.arange(300) % 3
    for _ in range(300):
        shared = rng.random(300)
        one, other = (np.where(rng.random(300) < 0.5, shared, rng.random(300)) for _ in range(2))
        before = one < np.array([0.6, 0.9, 0.9])[groups]
        after = other < np.array([0.75, 0.9, 0.9])[groups]
        found = worst_group_outcomes(keys, after, groups).compared_with(worst_group_outcomes(keys, before, groups))
        held += found.interval.low <= 0.15 <= found.interval.high
    assert held / 300 > 0.93


def model(name, values, *, key="mine", known=True):
    result = DatasetResult(key=key, dataset=key, metrics={"acc1": np.mean(values), "main_metric": np.mean(values)})
    outcomes = outcomes_of(KEYS[: len(values)], values) if known else None
    return ModelResults(name=name, results={key: attrs.evolve(result, num_images=len(values), outcomes=outcomes)})


def test_a_paired_interval_sees_what_two_accuracies_do_not():
    before = [1.0] * 100 + [0.0] * 100
    after = [1.0] * 112 + [0.0] * 88
    (row,) = differences(model("b", after), model("a", before))
    assert row.interval.low > 0
    (row,) = differences(model("a", before), model("b", after))
    assert row.interval.high < 0
    (row,) = differences(model("b", after), model("a", before, known=False))
    assert row.interval.low < 0 < row.interval.high
    assert outcomes_of(KEYS, after).compared_with(outcomes_of(KEYS[::-1], after)) is None, "of other images"


def test_intervals_stand_in_the_table_the_results_and_the_report(tmp_path, capsys, colours):  # noqa: F811
    spec = EvaluationSpec(datasets=(str(class_folder(tmp_path)),), output=tmp_path / "out", device="cpu")
    first = evaluate_models(colours, spec)
    again = evaluate_models(colours, spec)
    for done in (first, again):
        measured = summarize(done)
        (row,) = results_table(measured).rows
        low, high = attrs.astuple(done.models[0].results["mine"].interval)
        assert row[1].small == f"{100 * low:.1f} to {100 * high:.1f}, n 6"
        (pair,) = compared_pairs(measured)
        assert differences(*pair)[0].num_images == 6
    line = json.loads(first.models[0].path.read_text(encoding="utf-8"))
    assert line["interval"] == pytest.approx([proportion_interval(6, 6).low, 1.0])

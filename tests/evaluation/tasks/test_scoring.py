"""The metrics that are published of every kind of data set, against scikit-learn and loops over the images."""

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mobileclip.data import Skip, SkipReport
from mobileclip.evaluation import SUITE, Benchmark, Features, score, suite_entry
from mobileclip.evaluation.data import FIELDS
from mobileclip.evaluation.tasks.zero_shot import require_metric
from tests.errors import fails
from tests.lazily import lazily

reference = lazily("sklearn.metrics")

NUM_IMAGES, NUM_CLASSES, DIM = 400, 9, 6


def benchmark_of(name, kind="classification"):
    classes = tuple(f"class {number}" for number in range(NUM_CLASSES))
    return Benchmark(name=name, kind=kind, class_names=classes, templates=("a {}", "the {}"), shards=())


def case_of(name, *, fields=0, seed=0):
    """Return a data set and features: images near their classes, the last without any; numbers of groups with gaps."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(NUM_CLASSES * 2, DIM, generator=generator)
    labels = torch.randint(0, NUM_CLASSES - 1, (NUM_IMAGES,), generator=generator)
    image = 0.7 * text[2 * labels] + torch.randn(NUM_IMAGES, DIM, generator=generator)
    groups = 2 * torch.randint(0, 6, (NUM_IMAGES, fields), generator=generator) + 1 if fields else None
    keys = tuple(map(str, range(NUM_IMAGES)))
    return benchmark_of(name), Features.of(keys=keys, image=image, text=text, labels=labels, metadata=groups)


def answers(features):
    """Return labels, scores and predictions, as numpy computes them."""
    prompts = F.normalize(features.text.double(), dim=-1).numpy().reshape(NUM_CLASSES, 2, DIM).mean(1)
    scores = features.image.double().numpy() @ (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).T
    return features.labels.numpy(), scores, scores.argmax(1)


def test_accuracies():
    benchmark, features = case_of("vtab-pets")
    labels, scores, predicted = answers(features)
    report = SkipReport(log=False)
    report.extend(Skip(reason="no_label", key=key, shard="", detail="") for key in "abc")
    result = score(benchmark, attrs.evolve(features, report=report))
    recall = reference.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    top5 = reference.top_k_accuracy_score(labels, scores, k=5, labels=range(NUM_CLASSES))
    expected = {"acc1": reference.accuracy_score(labels, predicted), "acc5": top5, "mean_per_class_recall": recall}
    assert result.metrics == pytest.approx({**expected, "main_metric": recall})
    assert (result.num_images, result.num_skipped) == (NUM_IMAGES, 3)


def test_iwildcam_counts_macro_f1_of_the_classes_that_are_there():
    benchmark, features = case_of("wilds-iwildcam")
    labels, _, predicted = answers(features)
    metrics = score(benchmark, features).metrics
    options = {"labels": np.unique(labels), "average": "macro"}
    assert metrics["F1-macro_all"] == pytest.approx(reference.f1_score(labels, predicted, **options))
    assert metrics["recall-macro_all"] == pytest.approx(reference.recall_score(labels, predicted, **options))
    assert (metrics["main_metric"], metrics["acc_avg"]) == (metrics["F1-macro_all"], metrics["acc1"])
    # Some images are taken for the class without any; as a class of its own it would have an F1 of 0.
    assert (predicted == NUM_CLASSES - 1).any()
    assert metrics["F1-macro_all"] > reference.f1_score(labels, predicted, average="macro")


WORST = [
    ("wilds-fmow", "region", "acc", "acc_worst_region"),
    ("wilds-fmow", "year", "acc", "acc_worst_year"),
    ("wilds-camelyon17", "slide", "acc", "acc_wg"),
    ("dollar_street", "income_ds", "acc_top5", "acc_top5_wg"),
    ("geode", "region", "acc", "acc_wg"),
    ("fairness-geode", "region", "acc", "acc_wg"),
]


@pytest.mark.parametrize(("name", "field", "prefix", "worst"), WORST)
def test_the_worst_group(name, field, prefix, worst):
    entry = suite_entry(name)
    fields = FIELDS[entry.key]
    benchmark, features = case_of(name, fields=len(fields))
    labels, scores, predicted = answers(features)
    among_five = (np.argsort(-scores, axis=1)[:, :5] == labels[:, None]).any(1)
    right = among_five if prefix == "acc_top5" else predicted == labels
    groups = features.metadata[:, fields.index(field)].numpy()
    metrics = score(benchmark, features).metrics
    accuracies = {group: right[groups == group].mean() for group in np.unique(groups)}
    assert len(accuracies) == 6
    for group, accuracy in accuracies.items():
        assert metrics[f"{prefix}_{field}:{group}"] == pytest.approx(accuracy)
        assert metrics[f"count_{field}:{group}"] == (groups == group).sum()
    assert not {f"{prefix}_{field}:0", f"count_{field}:2"} & metrics.keys()
    assert metrics[worst] == pytest.approx(min(accuracies.values()))
    assert metrics[f"{prefix}_avg"] == pytest.approx(right.mean())
    assert metrics["main_metric"] == metrics[entry.main_metric]


def test_fmow_counts_the_four_images_of_no_region_as_the_published_figures_do():
    benchmark, features = case_of("wilds-fmow", fields=3)
    labels, _, predicted = answers(features)
    metadata = features.metadata.clone()
    metadata[metadata[:, 0] == 5, 0] = 3
    metadata[np.flatnonzero(predicted != labels)[:4], 0] = 5
    metrics = score(benchmark, features.with_tensors(metadata=metadata)).metrics
    assert (metrics["count_region:5"], metrics["main_metric"]) == (4, 0)


def test_groups_that_are_needed_and_not_there():
    for name in ("wilds-fmow", "dollar_street", "geode"):
        with fails(ValueError, name, "acc_"):
            score(*case_of(name))
    found = score(*case_of("wilds-camelyon17")).metrics
    assert set(found) == {"acc1", "acc5", "mean_per_class_recall", "main_metric"}


def test_what_counts_is_known_for_every_data_set_of_the_suite_but_one():
    for entry in SUITE:
        kind = "retrieval" if entry.key.startswith("retrieval/") else "classification"
        benchmark = benchmark_of(entry.key.replace("/", "-"), kind)
        if entry.key == "misc/winogavil":
            with fails(ValueError, "jaccard_score_10-12"):
                require_metric(benchmark)
        else:
            assert require_metric(benchmark) == entry.main_metric
    with fails(ValueError, "mnist", "acc1", "retrieval", "mean"):
        require_metric(benchmark_of("mnist", "retrieval"))

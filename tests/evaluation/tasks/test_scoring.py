"""The metrics that are published of every kind of data set, against scikit-learn and loops over the images."""

from __future__ import annotations

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

NUM_IMAGES, NUM_CLASSES, NUM_TEMPLATES, DIM = 400, 9, 2, 6


@attrs.frozen
class Case:
    """A data set with random embeddings, and what numpy makes of them."""

    benchmark: Benchmark
    features: Features
    scores: np.ndarray
    labels: np.ndarray
    metadata: np.ndarray | None

    @property
    def predicted(self):
        return self.scores.argmax(1)

    @property
    def among_five(self):
        best = np.argsort(-self.scores, axis=1)[:, :5]
        return [label in row for row, label in zip(best, self.labels, strict=True)]


def benchmark_of(name, **options):
    defaults = {
        "kind": "classification",
        "class_names": tuple(f"class {number}" for number in range(NUM_CLASSES)),
        "templates": ("a {}", "the {}"),
        "shards": (),
    }
    return Benchmark(name=name, **defaults | options)


def case_of(name, *, fields=0, seed=0):
    """Images near their classes, of which the last has none; numbers of groups with gaps."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(NUM_CLASSES * NUM_TEMPLATES, DIM, generator=generator)
    labels = torch.randint(0, NUM_CLASSES - 1, (NUM_IMAGES,), generator=generator)
    image = 0.7 * text[NUM_TEMPLATES * labels] + torch.randn(NUM_IMAGES, DIM, generator=generator)
    groups = 2 * torch.randint(0, 6, (NUM_IMAGES, fields), generator=generator) + 1 if fields else None
    prompts = text.double().numpy().reshape(NUM_CLASSES, NUM_TEMPLATES, DIM)
    prompts = prompts / np.linalg.norm(prompts, axis=-1, keepdims=True)
    keys = tuple(map(str, range(NUM_IMAGES)))
    features = Features.of(keys=keys, image=image, text=text, labels=labels, metadata=groups)
    return Case(
        benchmark_of(name),
        features,
        image.double().numpy() @ F.normalize(torch.from_numpy(prompts.mean(1)), dim=-1).numpy().T,
        labels.numpy(),
        None if groups is None else groups.numpy(),
    )


def worst_by_hand(case, right, column):
    """Accuracy and number of images by the value of a column, one image after another."""
    found = {}
    for hit, row in zip(right, case.metadata, strict=True):
        found.setdefault(int(row[column]), []).append(bool(hit))
    return {group: (sum(hits) / len(hits), len(hits)) for group, hits in found.items()}


def test_accuracies():
    case = case_of("vtab-pets")
    report = SkipReport(log=False)
    report.extend(Skip(reason="no_label", key=key, shard="", detail="") for key in "abc")
    result = score(case.benchmark, attrs.evolve(case.features, report=report))
    assert result.metrics == {
        "acc1": pytest.approx(reference.accuracy_score(case.labels, case.predicted)),
        "acc5": pytest.approx(reference.top_k_accuracy_score(case.labels, case.scores, k=5, labels=range(NUM_CLASSES))),
        "mean_per_class_recall": pytest.approx(
            reference.recall_score(case.labels, case.predicted, labels=np.unique(case.labels), average="macro")
        ),
        "main_metric": result.metrics["mean_per_class_recall"],
    }
    assert (result.num_images, result.num_skipped) == (NUM_IMAGES, 3)


def test_iwildcam_counts_macro_f1_of_the_classes_that_are_there():
    case = case_of("wilds-iwildcam")
    metrics = score(case.benchmark, case.features).metrics
    options = {"labels": np.unique(case.labels), "average": "macro"}
    assert metrics["F1-macro_all"] == pytest.approx(reference.f1_score(case.labels, case.predicted, **options))
    assert metrics["recall-macro_all"] == pytest.approx(reference.recall_score(case.labels, case.predicted, **options))
    assert metrics["main_metric"] == metrics["F1-macro_all"]
    assert metrics["acc_avg"] == metrics["acc1"]
    # Some images are taken for the class without any; as a class of its own it would have an F1 of 0.
    assert (case.predicted == NUM_CLASSES - 1).any()
    assert metrics["F1-macro_all"] > reference.f1_score(case.labels, case.predicted, average="macro")


@pytest.mark.parametrize(
    ("name", "field", "prefix", "worst"),
    [
        ("wilds-fmow", "region", "acc", "acc_worst_region"),
        ("wilds-fmow", "year", "acc", "acc_worst_year"),
        ("wilds-camelyon17", "slide", "acc", "acc_wg"),
        ("dollar_street", "income_ds", "acc_top5", "acc_top5_wg"),
        ("geode", "region", "acc", "acc_wg"),
        ("fairness-geode", "region", "acc", "acc_wg"),
    ],
)
def test_the_worst_group(name, field, prefix, worst):
    entry = suite_entry(name)
    fields = FIELDS[entry.key]
    case = case_of(name, fields=len(fields))
    metrics = score(case.benchmark, case.features).metrics
    right = case.among_five if prefix == "acc_top5" else case.predicted == case.labels
    groups = worst_by_hand(case, right, fields.index(field))
    assert len(groups) == 6
    for group, (accuracy, count) in groups.items():
        assert metrics[f"{prefix}_{field}:{group}"] == pytest.approx(accuracy)
        assert metrics[f"count_{field}:{group}"] == count
    assert not {f"{prefix}_{field}:0", f"count_{field}:2"} & metrics.keys()
    assert metrics[worst] == pytest.approx(min(accuracy for accuracy, _ in groups.values()))
    assert metrics[f"{prefix}_avg"] == pytest.approx(np.mean(right))
    assert metrics["main_metric"] == metrics[entry.main_metric]


def test_fmow_counts_the_four_images_of_no_region_as_the_published_figures_do():
    case = case_of("wilds-fmow", fields=3)
    wrong = np.flatnonzero(case.predicted != case.labels)[:4]
    metadata = case.features.metadata.clone()
    metadata[metadata[:, 0] == 5, 0] = 3
    metadata[wrong, 0] = 5
    metrics = score(case.benchmark, case.features.with_tensors(metadata=metadata)).metrics
    assert (metrics["count_region:5"], metrics["main_metric"]) == (4, 0)


def test_groups_that_are_needed_and_not_there():
    for name in ("wilds-fmow", "dollar_street", "geode"):
        case = case_of(name)
        with fails(ValueError, name, "acc_"):
            score(case.benchmark, case.features)
    case = case_of("wilds-camelyon17")
    plain = {"acc1", "acc5", "mean_per_class_recall", "main_metric"}
    assert set(score(case.benchmark, case.features).metrics) == plain


def test_what_counts_is_known_for_every_data_set_of_the_suite_but_one():
    for entry in SUITE:
        kind = "retrieval" if entry.key.startswith("retrieval/") else "classification"
        benchmark = benchmark_of(entry.key.replace("/", "-"), kind=kind)
        if entry.key == "misc/winogavil":
            with fails(ValueError, "jaccard_score_10-12"):
                require_metric(benchmark)
        else:
            assert require_metric(benchmark) == entry.main_metric
    with fails(ValueError, "mnist", "acc1", "retrieval", "mean"):
        require_metric(benchmark_of("mnist", kind="retrieval"))

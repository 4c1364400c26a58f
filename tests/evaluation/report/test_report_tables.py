"""What a report is about, and the numbers in its tables, against the published ones and sums by hand."""

import math
from datetime import datetime, timezone
from statistics import fmean

import attrs
import numpy as np
import pytest

from mobileclip.data import Skip, SkipReport
from mobileclip.evaluation import SUITE, DatasetResult, proportion_interval, published_models, published_results, tables
from mobileclip.evaluation.report import latency_panels
from mobileclip.evaluation.results import Latency, ModelResults, Predictions, differences, published_model
from tests.errors import fails

# As the papers' tables print them: parameters in millions, milliseconds, ImageNet, average.
PUBLISHED = {
    "mobileclip_s0": ("53.8", "1.5 + 1.6", "67.8", "58.1"),
    "mobileclip_s2": ("99.1", "3.6 + 3.3", "74.4", "63.7"),
    "mobileclip_blt": ("149.7", "10.4 + 3.3", "77.2", "65.8"),
    "mobileclip2_s4": ("445.2", "19.6 + 6.6", "81.9", "67.5"),
}
HERE = Latency(image_ms=100, text_ms=50, device="CPU", source="measured")


def result(key, score, **options):
    return DatasetResult(key=key, dataset=key.title(), metrics={"acc1": score, "main_metric": score}, **options)


def model(name, scores, *, num_images=None, evaluated=None, **options):
    about = {"num_images": num_images, "evaluated": evaluated or {}}
    results = {key: result(key, score, **about) for key, score in scores.items()}
    return ModelResults(name=name, results=results, source="measured", **options)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def titles(table):
    return [column.title for column in table.columns]


def test_every_published_model_has_its_latency_and_size():
    for name in published_models():
        one = published_model(name)
        (latency,) = one.latencies
        assert (one.results, one.source, latency.source) == (published_results(name), "published", "published")
        assert latency.total_ms == pytest.approx(latency.image_ms + latency.text_ms)
        assert one.num_parameters > 50e6


def test_models_against_the_papers():
    table = tables.models_table([published_model(name) for name in PUBLISHED])
    assert texts(table) == [[name, "published", *figures] for name, figures in PUBLISHED.items()]

    table = tables.models_table([model("ours", {"mnist": 0.5, "other": 0.1})])
    assert texts(table) == [["ours", "measured here", "", ""]]
    assert "average of 38, %" not in titles(table)


def test_noise_is_of_the_images_that_were_used():
    published = published_model("mobileclip_s0")
    theirs = published.results["mnist"].main_metric
    ours = theirs + 0.02
    for used in (10_000, 500):
        noise = 2 * math.sqrt(ours * (1 - ours) / used + theirs * (1 - theirs) / 10_000)
        (row,) = differences(model("ours", {"mnist": ours}, num_images=used), published)
        assert (row.interval.low, row.interval.high) == pytest.approx((0.02 - noise, 0.02 + noise))
        assert row.num_images == used
    # Nobody says how many were used: the suite's data set has 10,000.
    (row,) = differences(model("ours", {"mnist": ours}), published)
    assert row.interval.low > 0


def test_differences_beyond_the_suite():
    """The suite's data sets first; where nobody knows the number of images, there is no interval."""
    scores = [{"zebras": score, "cars": 0.5} for score in (0.9, 0.1)]
    ours, theirs = (model(name, {**one, name: 1}) for name, one in zip("ab", scores, strict=True))
    rows = differences(ours, theirs)
    assert [(row.dataset, row.interval is None) for row in rows] == [("Stanford Cars", False), ("Zebras", True)]
    _, zebras = differences(*(model("a", one, num_images=100) for one in scores))
    assert (zebras.interval.low > 0, zebras.metric) == (True, "acc1")
    assert differences(ours, model("theirs", {"y": 1})) == ()


def test_who_is_compared_with_whom():
    first, second = (model(name, {"mnist": 0.5}, reference="mobileclip_s0") for name in ("first", "second"))
    pairs = tables.compared_pairs([first, second, published_model("mobileclip_s0")])
    found = [(one.name, other.name) for one, other in pairs]
    assert found == [("second", "first"), ("first", "mobileclip_s0"), ("second", "mobileclip_s0")]
    assert tables.compared_pairs([model("alone", {"mnist": 0.5})]) == ()

    assert [tables.points(one) for one in (0.0123, -0.0123, 1e-4, -1e-4)] == ["+1.2", "\u22121.2", "0.0", "0.0"]


def test_robustness_against_the_published_figures():
    results = published_results("mobileclip_s1")
    (row,) = tables.robustness_table([published_model("mobileclip_s1"), model("none", {"mnist": 1})]).rows
    keys = ("imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "imagenet-o", "objectnet")
    imagenet, *scores = (results[key].main_metric for key in keys)
    assert [cell.text for cell in row[1:-1]] == [f"{100 * score:.1f}" for score in (imagenet, *scores)]
    assert [cell.small for cell in row[2:-1]] == [tables.points(score - imagenet) for score in scores]
    assert row[-1].text == tables.points(fmean(scores) - imagenet)


def test_robustness_of_what_there_is():
    scores = {"a": {"imagenet1k": 0.7, "imagenetv2": 0.6}, "b": {"imagenet1k": 0.7, "imagenet_sketch": 0.8}}
    alone = model("c", {"imagenet1k": 0.9})
    table = tables.robustness_table([*(model(name, one) for name, one in scores.items()), alone])
    assert titles(table) == ["model", "ImageNet", "v2", "Sketch", "mean drop"]
    assert texts(table) == [["a", "70.0", "60.0", "", ""], ["b", "70.0", "", "80.0", ""]]
    assert tables.robustness_table([alone]) is None


def test_every_result_stands_once():
    published = published_model("mobileclip2_s0")
    table = texts(tables.results_table([published, model("ours", {"mnist": 0.99, "zebras": 0.5})]))
    assert [row[0] for row in table[:38]] == [entry.name for entry in SUITE]
    rows = {name: cells for name, *cells in table}
    assert len(rows) == len(table) == len(published.results) + 2
    expected = {"MNIST": ["85.0", "99.0"], "Zebras": ["", "50.0"], "average of 38": ["59.7", ""]}
    assert {name: rows[name] for name in expected} == expected


def test_many_models_have_a_row_each():
    models = [model(f"export {n}", {"mnist": n / 10, "zebras": 0.5}) for n in range(5)]
    table = tables.results_table(models)
    columns = [(column.title, column.small, column.is_number) for column in table.columns]
    assert columns == [("model", "", False), *((name, "top-1 accuracy", True) for name in ("MNIST", "Zebras"))]
    assert texts(table) == [[f"export {n}", tables.per_cent(n / 10), "50.0"] for n in range(5)]
    assert table.rows[0][0].small == "measured"
    assert titles(tables.results_table(models[:4])) == ["data set", *(f"export {n}" for n in range(4))]


def test_a_row_has_a_cell_for_every_column():
    columns = tables.Column(title="a"), tables.Column(title="b")
    with fails(ValueError, "1", "t", "2"):
        tables.Table(title="t", columns=columns, rows=((tables.Cell(),),))


def predictions(labels, predicted, margin=None, class_names=("cat", "dog", "fish", "bird")):
    keys = tuple(f"image {number}" for number in range(len(labels)))
    margin = np.zeros(len(labels)) if margin is None else np.array(margin)
    classes = {"labels": np.array(labels), "predicted": np.array(predicted), "class_names": class_names}
    return Predictions(keys=keys, margin=margin, **classes)


def test_classes_the_worst_first_and_what_they_are_confused_with():
    six = predictions([0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 1, 0])
    table = tables.class_table("t", six)
    assert texts(table) == [["bird", "0.0", "", "1"], ["cat", "66.7", "66.7", "3"], ["dog", "100.0", "66.7", "2"]]
    low, high = (f"{100 * end:.1f}" for end in attrs.astuple(proportion_interval(2, 3)))
    assert table.rows[1][1].small == f"{low} to {high}"
    table = tables.confusion_table("t", six)
    assert titles(table)[1:] == ["cat", "dog", "bird"]
    assert texts(table) == [["cat", "2", "1", ""], ["dog", "", "2", ""], ["bird", "1", "", ""]]


def test_many_classes_are_cut_to_the_most_confused():
    labels = np.arange(60)
    predicted = np.where(labels < 30, labels, (labels + 1) % 60)
    table = tables.confusion_table("t", predictions(labels, predicted, class_names=tuple(map(str, labels))))
    assert len(table.rows) == len(table.columns) - 1 == 20
    assert all(int(row[0].text) >= 30 for row in table.rows)
    assert table.notes == ("The worst 20 of 60 classes.",)


def test_the_surest_errors_first_and_no_table_of_none():
    table = tables.errors_table("t", predictions([0, 0, 1], [1, 2, 1], [0.1, 0.3, 0]))
    assert texts(table) == [["image 1", "cat", "fish", "0.300"], ["image 0", "cat", "dog", "0.100"]]
    right = result("a", 1, predictions=predictions([0, 1], [0, 1]))
    found = tables.prediction_tables([ModelResults(name="m", results={"a": right})])
    assert [table.title for table in found] == ["m on A: classes", "m on A: confusion matrix"]


def test_used_and_left_out():
    report = SkipReport(num_read=1234, log=False)
    for reason in ("no_label", "image_truncated", "no_label"):
        report.add(Skip(reason=reason, key="k", shard="s", detail="d"))
    counts = {"a": {"num_images": 1234, "num_skipped": 3, "report": report}, "b": {}}
    counts["c"] = {"num_images": 7, "num_skipped": 2}
    results = {key: result(key, 1, **count) for key, count in counts.items()}
    first, second, third = texts(tables.coverage_table([ModelResults(name="ours", results=results)]))
    assert first == ["A", "ours", "1,234", "3", "2 no label, 1 truncated"]
    assert (second, third) == (["B", "ours", *["not recorded"] * 3], ["C", "ours", "7", "2", "not recorded"])


def test_when_and_with_what():
    when = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
    known = {"when": when.isoformat(), "version": "1.2", "weights_sha256": "0f" * 32, "device": "CPU"}
    rows = texts(tables.provenance_table([model("a", {"x": 1}, evaluated=known), model("b", {})]))
    assert rows == [["a", "2026-03-01 12:30 UTC", "1.2", "CPU", "0f" * 32], ["b", "not recorded", "", "", ""]]


def test_a_mean_over_data_sets_is_as_sure_as_all_of_them():
    two = [model(one, dict.fromkeys("abcd", 0.5), num_images=100, latencies=(HERE,)) for one in "mn"]
    (panel,) = latency_panels(two)
    alone, found = proportion_interval(50, 100), panel.points[0].interval
    assert (found.low, found.high) == pytest.approx((0.5 + (alone.low - 0.5) / 2, 0.5 + (alone.high - 0.5) / 2))


def test_devices_are_never_mixed():
    ours = attrs.evolve(published_model("mobileclip_s2"), name="ours", source="measured", latencies=(HERE,))
    (theirs,) = published_model("mobileclip_s0").latencies
    two = (theirs, attrs.evolve(HERE, image_ms=10))
    both = attrs.evolve(published_model("mobileclip_s0"), name="both", latencies=two)
    # Of the same name, but measured here: not the phone of the paper.
    phone = model("m", {}, latencies=(attrs.evolve(theirs, source="measured"),))
    panels = latency_panels([published_model("mobileclip_s1"), ours, both, phone])
    named = [(panel.source, [point.name for point in panel.points]) for panel in panels]
    assert named == [("published", ["mobileclip_s1", "both"]), ("measured", ["ours", "both"])]
    assert [point.total_ms for point in panels[1].points] == [150, 60]
    assert panels[0].score_title == "average of 38 data sets"
    assert [point.score for point in panels[0].points] == pytest.approx([0.6125, 0.5812], abs=1e-4)


def test_scores_are_over_what_all_models_have():
    scores = ({"x": 0.2, "y": 0.4, "z": 1.0}, {"x": 0.6, "y": 0.2}, {"x": 1}, {"q": 1})
    first, second, one, none = (model(f"{own}", own, latencies=(HERE,)) for own in scores)
    (panel,) = latency_panels([first, second])
    assert panel.score_title == "mean of 2 data sets"
    assert [point.score for point in panel.points] == pytest.approx([0.3, 0.4])
    assert [panel.score_title for panel in latency_panels([first, one])] == ["X"]
    assert latency_panels([first, none]) == ()

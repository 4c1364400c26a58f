"""What a report is about, and the numbers in its tables, against the published ones and sums by hand."""

import math
from datetime import datetime, timezone
from statistics import fmean

import attrs
import numpy as np
import pytest

from mobileclip.data import Skip, SkipReport
from mobileclip.evaluation import SUITE, DatasetResult, proportion_interval, published_models, published_results
from mobileclip.evaluation.report import latency_panels
from mobileclip.evaluation.results import Answers, Latency, ModelResults, differences, published_model
from mobileclip.evaluation.tables import (
    Cell,
    Column,
    Table,
    answer_tables,
    class_table,
    compared_pairs,
    confusion_table,
    coverage_table,
    errors_table,
    models_table,
    per_cent,
    points,
    provenance_table,
    results_table,
    robustness_table,
)
from tests.errors import fails

# As the papers' tables print them: parameters in millions, milliseconds, ImageNet, average.
PUBLISHED = {
    "mobileclip_s0": ("53.8", "1.5 + 1.6", "67.8", "58.1"),
    "mobileclip_s2": ("99.1", "3.6 + 3.3", "74.4", "63.7"),
    "mobileclip_blt": ("149.7", "10.4 + 3.3", "77.2", "65.8"),
    "mobileclip2_s4": ("445.2", "19.6 + 6.6", "81.9", "67.5"),
}


def result(key, score, **options):
    return DatasetResult(key=key, dataset=key.title(), metrics={"acc1": score, "main_metric": score}, **options)


def model(name, scores, *, num_images=None, evaluated=None, **options):
    about = {"num_images": num_images, "evaluated": evaluated or {}}
    results = {key: result(key, score, **about) for key, score in scores.items()}
    return ModelResults(name=name, results=results, source="measured", **options)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


class TestModels:
    def test_every_published_model_has_its_latency_and_size(self):
        for name in published_models():
            one = published_model(name)
            assert one.results == published_results(name)
            (latency,) = one.latencies
            assert latency.source == one.source == "published"
            assert latency.total_ms == pytest.approx(latency.image_ms + latency.text_ms)
            assert one.num_parameters > 50e6

    def test_against_the_papers(self):
        table = models_table([published_model(name) for name in PUBLISHED])
        for (name, figures), row in zip(PUBLISHED.items(), texts(table), strict=True):
            assert row == [name, "published", *figures]

    def test_a_part_of_the_suite_has_no_average(self):
        table = models_table([model("ours", {"mnist": 0.5, "other": 0.1})])
        assert texts(table) == [["ours", "measured here", "", ""]]
        assert "average of 38, %" not in [column.title for column in table.columns]


class TestDifferences:
    def test_noise_is_of_the_images_that_were_used(self):
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

    def test_beyond_the_suite(self):
        """The suite's data sets first; where nobody knows the number of images, there is no interval."""
        scores = (("a", 0.9), ("b", 0.1))
        ours, theirs = (model(one, {"zebras": score, "cars": 0.5, one: 1}) for one, score in scores)
        rows = differences(ours, theirs)
        assert [(row.dataset, row.interval is None) for row in rows] == [("Stanford Cars", False), ("Zebras", True)]
        rows = differences(*(model(one, {"zebras": score, "cars": 0.5}, num_images=100) for one, score in scores))
        assert rows[1].interval.low > 0
        assert rows[1].metric == "acc1"
        assert differences(ours, model("theirs", {"y": 1})) == ()

    def test_who_is_compared_with_whom(self):
        published = published_model("mobileclip_s0")
        first, second = (model(name, {"mnist": 0.5}, reference="mobileclip_s0") for name in ("first", "second"))
        found = [(one.name, other.name) for one, other in compared_pairs([first, second, published])]
        assert found == [("second", "first"), ("first", "mobileclip_s0"), ("second", "mobileclip_s0")]
        assert compared_pairs([model("alone", {"mnist": 0.5})]) == ()

    @pytest.mark.parametrize(
        ("value", "text"), [(0.0123, "+1.2"), (-0.0123, "\u22121.2"), (0.0001, "0.0"), (-0.0001, "0.0")]
    )
    def test_points(self, value, text):
        assert points(value) == text


class TestRobustness:
    def test_against_the_published_figures(self):
        results = published_results("mobileclip_s1")
        table = robustness_table([published_model("mobileclip_s1"), model("none", {"mnist": 1})])
        (row,) = table.rows
        imagenet = results["imagenet1k"].main_metric
        keys = ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "imagenet-o", "objectnet")
        scores = [results[key].main_metric for key in keys]
        assert [cell.text for cell in row[1:-1]] == [f"{100 * score:.1f}" for score in (imagenet, *scores)]
        assert [cell.small for cell in row[2:-1]] == [points(score - imagenet) for score in scores]
        assert row[-1].text == points(fmean(scores) - imagenet)

    def test_only_what_there_is(self):
        table = robustness_table(
            [
                model("a", {"imagenet1k": 0.7, "imagenetv2": 0.6}),
                model("b", {"imagenet1k": 0.7, "imagenet_sketch": 0.8}),
                model("c", {"imagenet1k": 0.9}),
            ]
        )
        assert [column.title for column in table.columns] == ["model", "ImageNet", "v2", "Sketch", "mean drop"]
        assert texts(table) == [["a", "70.0", "60.0", "", ""], ["b", "70.0", "", "80.0", ""]]
        assert robustness_table([model("c", {"imagenet1k": 0.9})]) is None


class TestResults:
    def test_every_result_stands_once(self):
        published = published_model("mobileclip2_s0")
        table = results_table([published, model("ours", {"mnist": 0.99, "zebras": 0.5})])
        rows = {row[0].text: row for row in table.rows}
        assert len(rows) == len(table.rows) == len(published.results) + 2
        assert [row[0].text for row in table.rows[:38]] == [entry.name for entry in SUITE]
        assert [cell.text for cell in rows["MNIST"][1:]] == ["85.0", "99.0"]
        assert [cell.text for cell in rows["Zebras"][1:]] == ["", "50.0"]
        assert [cell.text for cell in rows["average of 38"][1:]] == ["59.7", ""]

    def test_many_models_have_a_row_each(self):
        models = [model(f"export {n}", {"mnist": n / 10, "zebras": 0.5}) for n in range(5)]
        table = results_table(models)
        assert [column.title for column in table.columns] == ["model", "MNIST", "Zebras"]
        assert [column.small for column in table.columns] == ["", "top-1 accuracy", "top-1 accuracy"]
        assert [column.is_number for column in table.columns] == [False, True, True]
        assert texts(table) == [[f"export {n}", per_cent(n / 10), "50.0"] for n in range(5)]
        assert table.rows[0][0].small == "measured"
        upright = results_table(models[:4])
        assert [column.title for column in upright.columns] == ["data set", *(f"export {n}" for n in range(4))]

    def test_a_row_has_a_cell_for_every_column(self):
        with fails(ValueError, "1", "t", "2"):
            Table(title="t", columns=(Column(title="a"), Column(title="b")), rows=((Cell(),),))


class TestAnswers:
    def answers(self, labels, predicted, margin=None):
        margin = np.zeros(len(labels)) if margin is None else np.array(margin)
        keys = tuple(f"image {number}" for number in range(len(labels)))
        classes = {"labels": np.array(labels), "predicted": np.array(predicted), "margin": margin}
        return Answers(keys=keys, class_names=("cat", "dog", "fish", "bird"), **classes)

    def test_classes_the_worst_first(self):
        table = class_table("t", self.answers([0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 1, 0]))
        assert texts(table) == [["bird", "0.0", "", "1"], ["cat", "66.7", "66.7", "3"], ["dog", "100.0", "66.7", "2"]]
        low, high = (f"{100 * end:.1f}" for end in attrs.astuple(proportion_interval(2, 3)))
        assert table.rows[1][1].small == f"{low} to {high}"

    def test_confusion_matrix(self):
        table = confusion_table("t", self.answers([0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 1, 0]))
        assert [column.title for column in table.columns[1:]] == ["cat", "dog", "bird"]
        assert texts(table) == [["cat", "2", "1", ""], ["dog", "", "2", ""], ["bird", "1", "", ""]]

    def test_many_classes_are_cut_to_the_most_confused(self):
        labels = np.arange(60)
        predicted = np.where(labels < 30, labels, (labels + 1) % 60)
        many = Answers(
            keys=tuple(map(str, labels)),
            class_names=tuple(map(str, labels)),
            labels=labels,
            predicted=predicted,
            margin=np.ones(60),
        )
        table = confusion_table("t", many)
        assert len(table.rows) == len(table.columns) - 1 == 20
        assert all(int(row[0].text) >= 30 for row in table.rows)
        assert table.notes == ("The worst 20 of 60 classes.",)

    def test_the_surest_errors_first(self):
        table = errors_table("t", self.answers([0, 0, 1], [1, 2, 1], [0.1, 0.3, 0]))
        assert texts(table) == [["image 1", "cat", "fish", "0.300"], ["image 0", "cat", "dog", "0.100"]]

    def test_no_table_of_no_errors(self):
        right = result("a", 1, answers=self.answers([0, 1], [0, 1]))
        tables = answer_tables([ModelResults(name="m", results={"a": right})])
        assert [table.title for table in tables] == ["m on A: classes", "m on A: confusion matrix"]


class TestOrigins:
    def test_used_and_left_out(self):
        report = SkipReport(num_read=1234, log=False)
        for reason in ("no_label", "image_truncated", "no_label"):
            report.add(Skip(reason=reason, key="k", shard="s", detail="d"))
        results = {
            "a": result("a", 1, num_images=1234, num_skipped=3, report=report),
            "b": result("b", 1),
            "c": result("c", 1, num_images=7, num_skipped=2),
        }
        assert texts(coverage_table([ModelResults(name="ours", results=results)])) == [
            ["A", "ours", "1,234", "3", "2 no label, 1 truncated"],
            ["B", "ours", "not recorded", "not recorded", "not recorded"],
            ["C", "ours", "7", "2", "not recorded"],
        ]

    def test_when_and_with_what(self):
        when = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
        known = {"when": when.isoformat(), "version": "1.2", "weights_sha256": "0f" * 32, "device": "CPU"}
        table = provenance_table([model("a", {"x": 1}, evaluated=known), model("b", {})])
        assert texts(table) == [
            ["a", "2026-03-01 12:30 UTC", "1.2", "CPU", "0f" * 32],
            ["b", "not recorded", "", "", ""],
        ]


class TestLatency:
    def test_a_mean_over_data_sets_is_as_sure_as_all_of_them(self):
        latency = Latency(image_ms=1, text_ms=1, device="CPU", source="measured")
        two = [model(one, dict.fromkeys("abcd", 0.5), num_images=100, latencies=(latency,)) for one in "mn"]
        (panel,) = latency_panels(two)
        alone, found = proportion_interval(50, 100), panel.points[0].interval
        assert (found.low, found.high) == pytest.approx((0.5 + (alone.low - 0.5) / 2, 0.5 + (alone.high - 0.5) / 2))

    def test_devices_are_never_mixed(self):
        here = Latency(image_ms=100, text_ms=50, device="CPU", source="measured")
        ours = attrs.evolve(published_model("mobileclip_s2"), name="ours", source="measured", latencies=(here,))
        both = attrs.evolve(published_model("mobileclip_s0"), name="both")
        both = attrs.evolve(both, latencies=(*both.latencies, attrs.evolve(here, image_ms=10)))
        # Of the same name, but measured here: not the phone of the paper.
        phone = attrs.evolve(both.latencies[0], source="measured")
        panels = latency_panels([published_model("mobileclip_s1"), ours, both, model("m", {}, latencies=(phone,))])
        named = [(panel.source, [point.name for point in panel.points]) for panel in panels]
        assert named == [("published", ["mobileclip_s1", "both"]), ("measured", ["ours", "both"])]
        assert [point.total_ms for point in panels[1].points] == [150, 60]
        assert panels[0].score_title == "average of 38 data sets"
        assert [point.score for point in panels[0].points] == pytest.approx([0.6125, 0.5812], abs=1e-4)

    def test_scores_are_over_what_all_models_have(self):
        latency = Latency(image_ms=1, text_ms=1, device="CPU", source="measured")
        two = [
            model("a", {"x": 0.2, "y": 0.4, "z": 1.0}, latencies=(latency,)),
            model("b", {"x": 0.6, "y": 0.2}, latencies=(latency,)),
        ]
        (panel,) = latency_panels(two)
        assert panel.score_title == "mean of 2 data sets"
        assert [point.score for point in panel.points] == pytest.approx([0.3, 0.4])
        assert latency_panels([two[0], model("c", {"q": 1}, latencies=(latency,))]) == ()
        (panel,) = latency_panels([two[0], model("c", {"x": 1}, latencies=(latency,))])
        assert panel.score_title == "X"

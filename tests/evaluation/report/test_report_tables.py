"""What a report is about, and the numbers in its tables, against the published ones and sums by hand."""

import math
from datetime import datetime, timezone
from statistics import fmean

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from mobileclip.data import Skip, SkipReport
from mobileclip.evaluation import SUITE, DatasetResult, proportion_interval, published_models, published_results
from mobileclip.evaluation.metrics.outcomes import outcomes_of
from mobileclip.evaluation.report import (
    LIGHT,
    Cell,
    Column,
    Coverage,
    Latency,
    ModelResults,
    Provenance,
    Table,
    compared_pairs,
    coverage_table,
    differences,
    differences_table,
    draw_latency,
    latency_panels,
    models_table,
    per_cent,
    points,
    provenance_table,
    published_model,
    results_table,
    robustness_table,
)
from tests.cli.test_cli import run
from tests.datasets.test_opening import class_folder
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


def model(name, scores, *, num_images=None, **options):
    results = {key: result(key, score, num_images=num_images) for key, score in scores.items()}
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

    def test_titles(self):
        models = [published_model(name) for name in PUBLISHED]
        tables = [make(models) for make in (models_table, robustness_table, results_table, coverage_table)]
        assert [table.title for table in tables] == ["Models", "Robustness", "All results", "Images used and left out"]
        assert provenance_table(models).title == "When and with what"

    def test_a_part_of_the_suite_has_no_average(self):
        table = models_table([model("ours", {"mnist": 0.5, "other": 0.1})])
        assert texts(table) == [["ours", "measured here", "", ""]]
        assert "average of 38, %" not in [column.title for column in table.columns]

    def test_mistakes(self):
        with fails(ValueError, "ours", "mnist"):
            model("ours", {}, coverage={"mnist": Coverage(num_used=3)})
        with fails(ValueError):
            Provenance(when=datetime.now(timezone.utc), version="1", weights_sha256="abc")
        with pytest.raises(ValueError, match="'source'"):
            ModelResults(name="ours", results={}, source="guessed")
        with pytest.raises(ValueError, match="'image_ms'"):
            Latency(image_ms=0, text_ms=1, device="phone", source="measured")


class TestDifferences:
    def test_noise_is_of_the_images_that_were_used(self):
        published = published_model("mobileclip_s0")
        theirs = published.results["mnist"].main_metric
        ours = theirs + 0.02
        for used in (10_000, 500):
            noise = 2 * math.sqrt(ours * (1 - ours) / used + theirs * (1 - theirs) / 10_000)
            by_report = model("ours", {"mnist": ours}, coverage={"mnist": Coverage(num_used=used)})
            by_result = attrs.evolve(by_report, coverage={}, results={"mnist": result("mnist", ours, num_images=used)})
            for one in (by_report, by_result):
                (row,) = differences(one, published)
                assert (row.interval.low, row.interval.high) == pytest.approx((0.02 - noise, 0.02 + noise))
                assert row.num_images == used
        # Nobody says how many were used: the suite's data set has 10,000.
        (row,) = differences(model("ours", {"mnist": ours}), published)
        assert row.interval.low > 0

    def test_two_pictures_in_two_hundred_tell_nothing(self):
        """13.7 per cent against 12.6 is 26 pictures against 24."""
        keys = [str(number) for number in range(190)]
        before, after = np.zeros(190), np.zeros(190)
        before[:24], after[10:36] = 1, 1
        models = [
            attrs.evolve(model(name, {"pets": values.mean()}), outcomes={"pets": outcomes_of(keys, values)})
            for name, values in (("A", before), ("B", after))
        ]
        ((one, other),) = compared_pairs(models)
        assert (one.name, other.name) == ("B", "A")
        (row,) = differences(one, other)
        assert row.interval.low < 0 < row.interval.high
        (cells,) = texts(differences_table(one, other))
        assert cells == ["Pets", "+1.1", "13.7", "12.6", "190"]
        (row,) = differences_table(one, other).rows
        assert row[1].small.startswith("\N{MINUS SIGN}")

    def test_beyond_the_suite(self):
        """The suite's data sets first; where nobody knows the number of images, there is no interval."""
        ours, theirs = model("a", {"zebras": 0.9, "cars": 0.5}), model("b", {"cars": 0.5, "zebras": 0.1, "x": 1})
        rows = differences(ours, theirs)
        assert [(row.dataset, row.interval is None) for row in rows] == [("Stanford Cars", False), ("Zebras", True)]
        counted = {"zebras": Coverage(num_used=100)}
        rows = differences(attrs.evolve(ours, coverage=counted), attrs.evolve(theirs, coverage=counted))
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

    def test_the_models_of_the_suite_stand_side_by_side(self):
        table = results_table([published_model(name) for name in list(published_models())[:6]])
        assert len(table.columns) == 7

    def test_names_are_printed_whole(self, capsys, tmp_path, small_file):
        folder = class_folder(tmp_path).rename(tmp_path / "emoji-test_renderings")
        models = (f"openvino_int8-weights={small_file}", f"m={small_file}")
        status, printed, _ = run(capsys, "eval", *models, folder, "--output", tmp_path / "out", "--device", "cpu")
        assert status == 0
        below = printed.rpartition("data set")[2]
        assert "openvino_int8-weights" in below
        assert "emoji-test_renderings" in below

    def test_a_row_has_a_cell_for_every_column(self):
        with fails(ValueError, "1", "t", "2"):
            Table(title="t", columns=(Column(title="a"), Column(title="b")), rows=((Cell(),),))


class TestOrigins:
    def test_used_and_left_out(self):
        report = SkipReport(num_read=1234, log=False)
        for reason in ("no_label", "image_truncated", "no_label"):
            report.add(Skip(reason=reason, key="k", shard="s", detail="d"))
        ours = attrs.evolve(model("ours", {"a": 1, "b": 1, "c": 1}), coverage={"a": Coverage.of(report)})
        results = ours.results | {"c": result("c", 1, num_images=7, num_skipped=2)}
        assert texts(coverage_table([attrs.evolve(ours, results=results)])) == [
            ["A", "ours", "1,234", "3", "2 no label, 1 truncated"],
            ["B", "ours", "not recorded", "not recorded", "not recorded"],
            ["C", "ours", "7", "2", "not recorded"],
        ]

    def test_when_and_with_what(self):
        when = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
        known = Provenance(when=when, version="1.2", weights_sha256="0f" * 32, device="CPU")
        table = provenance_table([model("a", {}, provenance=known), model("b", {})])
        assert texts(table) == [
            ["a", "2026-03-01 12:30 UTC", "1.2", "CPU", "0f" * 32],
            ["b", "not recorded", "", "", ""],
        ]


class TestLatency:
    @given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
    def test_the_front_is_what_no_other_point_beats(self, pairs):
        timed = [
            model(
                f"{place}",
                {"a": score / 10},
                num_images=10**9,
                latencies=(Latency(image_ms=cost / 2, text_ms=cost / 2, device="CPU", source="measured"),),
            )
            for place, (cost, score) in enumerate(pairs)
        ]
        (panel,) = latency_panels(timed)
        for index, (cost, score) in enumerate(pairs):
            beaten = any(
                (other_cost <= cost and other_score > score) or (other_cost < cost and other_score >= score)
                for other_cost, other_score in pairs
            )
            assert any(pairs[one] == (cost, score) for one in panel.front) is not beaten, index
        assert [pairs[one] for one in panel.front] == sorted({pairs[one] for one in panel.front})

    @pytest.mark.parametrize(("num_images", "front"), [(100, (0,)), (10_000, (0, 1)), (None, (0,))])
    def test_models_that_are_not_to_be_told_apart_are_not_joined(self, num_images, front):
        latency = Latency(image_ms=1, text_ms=1, device="CPU", source="measured", load=0.5)
        slower = attrs.evolve(latency, image_ms=5, load=1.5)
        both = [
            model("faster", {"a": 0.5}, num_images=num_images, latencies=(latency,)),
            model("slower", {"a": 0.53}, num_images=num_images, latencies=(slower,)),
        ]
        (panel,) = latency_panels(both)
        assert panel.front == front
        figure = draw_latency(panel, LIGHT)
        (axes,) = figure.axes
        joined = [line for line in axes.lines if line.get_label() == "better than all faster"]
        assert [len(line.get_xdata()) for line in joined] == ([2] if len(front) == 2 else [])
        bars = [one for collection in axes.collections for one in getattr(collection, "get_segments", list)()]
        expected = [[0.5, 0.5], [0.53, 0.53]]
        if num_images:
            expected = [attrs.astuple(proportion_interval(p * num_images, num_images)) for p in (0.5, 0.53)]
        assert np.array([bar[:, 1] / 100 for bar in bars]) == pytest.approx(np.array(expected))
        assert "load average 0.5 to 1.5" in " ".join(text.get_text() for text in figure.texts)
        cells = [cell for row in models_table(both).rows for cell in row]
        assert [cell.small for cell in cells if "load" in cell.small] == ["CPU, load 0.5", "CPU, load 1.5"]

    def test_a_mean_over_data_sets_is_as_sure_as_all_of_them(self):
        latency = Latency(image_ms=1, text_ms=1, device="CPU", source="measured")
        (panel,) = latency_panels([model("m", dict.fromkeys("abcd", 0.5), num_images=100, latencies=(latency,))])
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

"""Results in files, the 38 data sets and their average, published figures, and what differs from them."""

import json

import attrs
import pytest

from mobileclip.cli import main
from mobileclip.data import Skip, SkipReport
from mobileclip.evaluation import (
    SUITE,
    DatasetResult,
    add_result,
    compare_results,
    published_models,
    published_results,
    published_with,
    read_results,
    suite_average,
    write_results,
)
from tests.errors import fails

# As the papers' tables print them.
AVERAGES = {
    "mobileclip_s0": 58.12,
    "mobileclip_s1": 61.25,
    "mobileclip_s2": 63.66,
    "mobileclip_b": 65.15,
    "mobileclip_blt": 65.78,
}


def changed(results, key, value):
    metrics = {**results[key].metrics, "main_metric": value}
    return results | {key: attrs.evolve(results[key], metrics=metrics)}


class TestPublished:
    @pytest.mark.parametrize(("model", "average"), AVERAGES.items())
    def test_averages(self, model, average):
        assert round(100 * suite_average(published_results(model)), 2) == average

    def test_the_suite_is_whole_for_every_model(self):
        assert len(SUITE) == len({entry.key for entry in SUITE}) == 38
        for model in published_models():
            assert {entry.key for entry in SUITE} <= published_results(model).keys()

    def test_the_main_metric_is_the_one_that_the_suite_names(self):
        compared = 0
        for model in published_models():
            results = published_results(model)
            for entry in SUITE:
                metrics = results[entry.key].metrics
                if entry.main_metric in metrics:
                    assert metrics[entry.main_metric] == metrics["main_metric"], entry
                    compared += 1
        assert compared == len(published_models()) * 33

    def test_other_models(self):
        with fails(ValueError, "vit", "mobileclip2_b"):
            published_results("vit")


class TestFiles:
    def test_round_trip(self, tmp_path):
        results = published_results("mobileclip2_s0")
        write_results(tmp_path / "r.jsonl", results.values())
        assert read_results(tmp_path / "r.jsonl") == results

    @pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
    def test_a_name_may_hold_what_ends_a_line_elsewhere(self, tmp_path, odd):
        one = DatasetResult(key=f"a{odd}b", dataset=f"A{odd}B", metrics={"main_metric": 0.5})
        report = SkipReport(log=False)
        report.add(Skip(reason=odd, key="k", shard="s", detail="d"))
        about = {"report": report, "absent_classes": (odd,), "evaluated": {"weights_sha256": odd}}
        one = attrs.evolve(one, **about, reading={"image_size": 32})
        path = tmp_path / "results.jsonl"
        add_result(path, one, model=odd)
        add_result(path, attrs.evolve(one, reading={"image_size": 64}), model=odd)
        add_result(path, one, model=odd)
        add_result(path, attrs.evolve(one, key="c"), model=odd)
        assert read_results(path) == {one.key: one, "c": attrs.evolve(one, key="c")}
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        assert [line["reading"]["image_size"] for line in lines] == [64, 32, 32]
        assert all(line["absent_classes"] == [odd] and line["left_out"] == {odd: 1} for line in lines)
        assert lines[0] | {"model": odd, "pretrained": odd} == lines[0], "as CLIP_benchmark names them"

    def test_what_was_left_out_is_written_beside_where_it_is_known(self, tmp_path):
        published = DatasetResult(key="a", dataset="A", metrics={"main_metric": 0.5})
        own = attrs.evolve(published, key="b", num_images=99, num_skipped=0)
        write_results(tmp_path / "r.jsonl", [published, own])
        first, second = (json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines())
        assert first == {"key": "a", "dataset": "A", "metrics": {"main_metric": 0.5}}
        assert (second["num_images"], second["num_skipped"]) == (99, 0)
        assert read_results(tmp_path / "r.jsonl") == {"a": published, "b": own}

    def test_what_is_repeated_replaces_what_is_unknown_is_ignored(self, tmp_path):
        lines = [
            {"key": "cifar10", "dataset": "CIFAR-10", "metrics": {"main_metric": 0.5, "acc5": None}, "seconds": 3},
            {"key": "cifar10", "dataset": "CIFAR-10", "metrics": {"main_metric": 1}},
        ]
        (tmp_path / "r.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
        results = read_results(tmp_path / "r.jsonl")
        assert results == {"cifar10": DatasetResult(key="cifar10", dataset="CIFAR-10", metrics={"main_metric": 1.0})}

    @pytest.mark.parametrize(
        ("line", "word"),
        [
            ("{", ""),
            ("[1]", ""),
            ('{"key": "a", "dataset": "A"}', "metrics"),
            ('{"dataset": "A", "metrics": {"main_metric": 1}}', "key"),
            ('{"key": "a", "dataset": "A", "metrics": 3}', "metrics"),
            ('{"key": "a", "dataset": "A", "metrics": {"acc1": 1}}', "main_metric"),
            ('{"key": "a", "dataset": "A", "metrics": {"main_metric": NaN}}', "NaN"),
            ('{"key": "a", "dataset": "A", "metrics": {"main_metric": [1]}}', ""),
            ('{"key": "a", "dataset": "A", "metrics": {"main_metric": 1}, "num_skipped": -1}', "num_skipped"),
        ],
    )
    def test_malformed_lines(self, tmp_path, line, word):
        path = tmp_path / "r.jsonl"
        path.write_text('{"key": "b", "dataset": "B", "metrics": {"main_metric": 1}}\n' + line)
        with fails(ValueError, "line 2", word):
            read_results(path)

    def test_the_average_of_fewer_is_another_number(self):
        results = published_results("mobileclip_b")
        del results["mnist"], results["cars"]
        with fails(ValueError, "38", "2", "MNIST, Stanford Cars"):
            suite_average(results)


class TestComparison:
    def test_only_what_exceeds_the_noise_stands_out(self):
        published = published_results("mobileclip_s0")
        score = published["cifar10"].main_metric
        # Two standard errors of the difference of two accuracies on 10,000 images.
        noise = 2 * (2 * score * (1 - score) / 10_000) ** 0.5
        for factor, stands_out in ((0.9, False), (-0.9, False), (1.2, True), (-1.2, True)):
            rows = compare_results(changed(published, "cifar10", score + factor * noise), published)
            assert len(rows) == 38
            (row,) = (row for row in rows if row.dataset == "CIFAR-10")
            assert (row.interval.high - row.interval.low) / 2 == pytest.approx(noise, rel=0.07)
            assert row.stands_out is stands_out
            assert not any(other.stands_out for other in rows if other is not row)

    def test_a_side_that_is_missing(self):
        published = published_results("mobileclip_s0")
        alone = {"mnist": published["mnist"]}
        rows = compare_results(alone, published)
        assert [row.dataset for row in rows if row.difference is not None] == ["MNIST"]
        (row,) = compare_results(alone, {})
        assert (row.value, row.reference, row.stands_out) == (0.6863, None, False)


class TestCommand:
    def test_beside_published(self, tmp_path, capsys):
        published = published_results("mobileclip_s1")
        measured = changed(published, "food101", published["food101"].main_metric - 0.05)
        write_results(tmp_path / "r.jsonl", measured.values())
        main(["eval", "report", str(tmp_path / "r.jsonl"), "--model", "mobileclip_s1"])
        said = capsys.readouterr().out
        (food,) = (line for line in said.splitlines() if "Food-101" in line)
        assert "-5.00*" in food
        assert "1 of 38 results differ by more than the noise" in said
        average = said.splitlines()[-2].split()
        assert average == ["average", f"{61.25 - 5 / 38:.2f}", "61.25"]

    def test_published_alone_and_a_part(self, tmp_path, capsys):
        main(["eval", "report", "-m", "mobileclip2_b"])
        assert capsys.readouterr().out.splitlines()[-1].split() == ["average", "0", "of", "38", "65.76"]
        write_results(tmp_path / "r.jsonl", [published_results("mobileclip_b")["mnist"]])
        main(["eval", "report", str(tmp_path / "r.jsonl"), "-m", "mobileclip_b"])
        assert "1 of 38" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "filters"),
    [
        ("mobileclip_s2", {None, "bilinear"}),
        ("mobileclip2_l14", {None, "bicubic"}),
        ("mobileclip2_s0", {None, "bilinear", "bicubic"}),  # which one its figures had is unknown
        ("vit_b16", set()),
        (None, set()),
    ],
)
def test_published_figures_stand_beside_the_filters_that_they_may_have_had(name, filters):
    found = {one: published_with(name, one) for one in (None, "bilinear", "bicubic")}
    assert found == {one: name if one in filters else None for one in found}

"""Results in files, the 38 data sets and their average, published figures, and what differs from them."""

import json

import attrs
import pytest

from mobileclip import evaluation
from mobileclip.cli import main
from mobileclip.data import Skip, SkipReport
from mobileclip.evaluation import SUITE, DatasetResult, add_result, compare_results, published_results, read_results
from tests.errors import fails

# As the papers' tables print them.
AVERAGES = {"s0": 58.12, "s1": 61.25, "s2": 63.66, "b": 65.15, "blt": 65.78}
PLAIN = DatasetResult(key="a", dataset="A", metrics={"main_metric": 0.5})


def changed(results, key, difference):
    value = results[key].main_metric + difference
    return results | {key: attrs.evolve(results[key], metrics={**results[key].metrics, "main_metric": value})}


def test_published_averages_and_main_metrics():
    assert len(SUITE) == len({entry.key for entry in SUITE}) == 38
    for name, average in AVERAGES.items():
        assert round(100 * evaluation.suite_average(published_results(f"mobileclip_{name}")), 2) == average
    for model in evaluation.published_models():
        found = [(entry.main_metric, published_results(model)[entry.key].metrics) for entry in SUITE]
        named = [(metrics[name], metrics["main_metric"]) for name, metrics in found if name in metrics]
        assert len(named) == 33
        assert all(one == main for one, main in named)
    with fails(ValueError, "vit", "mobileclip2_b"):
        published_results("vit")
    results = published_results("mobileclip_b")
    del results["mnist"], results["cars"]
    with fails(ValueError, "38", "2", "MNIST, Stanford Cars"):
        evaluation.suite_average(results)


def test_round_trip(tmp_path):
    path, results = tmp_path / "r.jsonl", published_results("mobileclip2_s0")
    evaluation.write_results(path, results.values())
    assert read_results(path) == results
    own = attrs.evolve(PLAIN, key="b", num_images=99, num_skipped=0)
    evaluation.write_results(path, [PLAIN, own])
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"key": "a", "dataset": "A", "metrics": {"main_metric": 0.5}}
    assert (second["num_images"], second["num_skipped"]) == (99, 0)
    assert read_results(path) == {"a": PLAIN, "b": own}
    repeated = first | {"metrics": {"main_metric": 1, "acc5": None}, "unknown": 3}
    path.write_text("\n\n".join(map(json.dumps, [repeated, first])))
    assert read_results(path) == {"a": PLAIN}


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
def test_a_name_may_hold_what_ends_a_line_elsewhere(tmp_path, odd):
    report, path = SkipReport(log=False), tmp_path / "results.jsonl"
    report.add(Skip(reason=odd, key="k", shard="s", detail="d"))
    about = {"report": report, "absent_classes": (odd,), "evaluated": {"weights_sha256": odd}}
    one = attrs.evolve(PLAIN, key=f"a{odd}b", dataset=f"A{odd}B", **about, reading={"image_size": 32})
    for change in ({}, {"reading": {"image_size": 64}}, {}, {"key": "c"}):
        add_result(path, attrs.evolve(one, **change), model=odd)
    assert read_results(path) == {one.key: one, "c": attrs.evolve(one, key="c")}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [line["reading"]["image_size"] for line in lines] == [64, 32, 32]
    assert all(line["absent_classes"] == [odd] and line["left_out"] == {odd: 1} for line in lines)
    assert lines[0] | {"model": odd, "pretrained": odd} == lines[0], "as CLIP_benchmark names them"


MALFORMED = [
    ("{", ""),
    ("[1]", ""),
    ('{"key": "a", "dataset": "A"}', "metrics"),
    ('{"dataset": "A", "metrics": {"main_metric": 1}}', "key"),
    ('{"key": "a", "dataset": "A", "metrics": 3}', "metrics"),
    ('{"key": "a", "dataset": "A", "metrics": {"acc1": 1}}', "main_metric"),
    ('{"key": "a", "dataset": "A", "metrics": {"main_metric": NaN}}', "NaN"),
    ('{"key": "a", "dataset": "A", "metrics": {"main_metric": [1]}}', ""),
    ('{"key": "a", "dataset": "A", "metrics": {"main_metric": 1}, "num_skipped": -1}', "num_skipped"),
]


@pytest.mark.parametrize(("line", "word"), MALFORMED)
def test_malformed_lines(tmp_path, line, word):
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": "b", "dataset": "B", "metrics": {"main_metric": 1}}\n' + line)
    with fails(ValueError, "line 2", word):
        read_results(path)


def test_only_what_exceeds_the_noise_stands_out():
    published = published_results("mobileclip_s0")
    score = published["cifar10"].main_metric
    # Two standard errors of the difference of two accuracies on 10,000 images.
    noise = 2 * (2 * score * (1 - score) / 10_000) ** 0.5
    for factor, stands_out in ((0.9, False), (-0.9, False), (1.2, True), (-1.2, True)):
        rows = {one.dataset: one for one in compare_results(changed(published, "cifar10", factor * noise), published)}
        assert [name for name, row in rows.items() if row.stands_out] == ["CIFAR-10"] * stands_out
        interval = rows["CIFAR-10"].interval
        assert (len(rows), (interval.high - interval.low) / 2) == (38, pytest.approx(noise, rel=0.07))
    alone = {"mnist": published["mnist"]}
    assert [row.dataset for row in compare_results(alone, published) if row.difference is not None] == ["MNIST"]
    (row,) = compare_results(alone, {})
    assert (row.value, row.reference, row.stands_out) == (0.6863, None, False)


def test_the_command_prints_results_beside_published_ones(tmp_path, capsys):
    def said(*arguments):
        main(["eval", "report", *arguments])
        return capsys.readouterr().out

    path, published = tmp_path / "r.jsonl", published_results("mobileclip_s1")
    evaluation.write_results(path, changed(published, "food101", -0.05).values())
    out = said(str(path), "--model", "mobileclip_s1")
    (food,) = (line for line in out.splitlines() if "Food-101" in line)
    assert "-5.00*" in food
    assert "1 of 38 results differ by more than the noise" in out
    assert out.splitlines()[-2].split() == ["average", f"{61.25 - 5 / 38:.2f}", "61.25"]
    assert said("-m", "mobileclip2_b").splitlines()[-1].split() == ["average", "0", "of", "38", "65.76"]
    evaluation.write_results(path, [published["mnist"]])
    assert "1 of 38" in said(str(path), "-m", "mobileclip_b")


FILTERS = [
    ("mobileclip_s2", {None, "bilinear"}),
    ("mobileclip2_l14", {None, "bicubic"}),
    ("mobileclip2_s0", {None, "bilinear", "bicubic"}),  # which one its figures had is unknown
    ("vit_b16", set()),
    (None, set()),
]


@pytest.mark.parametrize(("name", "filters"), FILTERS)
def test_published_figures_stand_beside_the_filters_that_they_may_have_had(name, filters):
    found = {one: evaluation.published_with(name, one) for one in (None, "bilinear", "bicubic")}
    assert found == {one: name if one in filters else None for one in found}

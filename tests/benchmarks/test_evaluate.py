"""The comparison with CLIP_benchmark: what it measures, that both sides say the same, and a whole run of it."""

import pytest

from benchmarks.evaluate import EvaluateBenchSpec, cut, largest_difference
from benchmarks.harness import run
from mobileclip.data import SkipReport
from mobileclip.evaluation import BenchmarkSample, open_benchmark, write_benchmark
from tests.evaluation.datasets.test_benchmark_writer import PICTURES
from tests.examples.quickstart.drawings import write_packages


def test_metrics_that_both_give_are_compared():
    ours, theirs = {"acc1": 0.5, "acc5": 0.75, "main_metric": 0.5}, {"acc1": 0.25, "acc5": 1.0}
    assert largest_difference(ours, theirs) == 0.25


def test_a_part_of_a_set_has_all_classes_and_a_shard_for_each_worker(tmp_path):
    samples = [BenchmarkSample(key=str(number), image=PICTURES["PNG"], label=number % 9) for number in range(40)]
    names = tuple("abcdefghi")
    whole = write_benchmark(tmp_path / "wds_it_test", samples, class_names=names, templates=("{}",))
    part = open_benchmark(cut(tmp_path / "wds_it_test", 10))
    assert (part.name, part.class_names, part.templates) == ("it", names, ("{}",))
    assert list(part.samples(SkipReport())) == samples[:10]
    assert len(part.shards) >= 4
    assert list(whole.samples(SkipReport())) == samples


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what CLIP_benchmark, webdataset and scikit-learn warn of is their own
def test_s0_on_a_few_drawings(tmp_path, capsys):
    write_packages(tmp_path / "data" / "download" / "node_modules")
    results = run(EvaluateBenchSpec(folder=tmp_path, tiny=True), "evaluate")
    assert [row.case["set"] for row in results.rows] == ["emoji-test_style", "emoji-test_style-captions"]
    for row in results.rows:
        assert row.values["images"].number == 12
        assert row.values["difference"].number <= 1 / 12 + 1e-6  # a picture; some metrics are float32
        assert row.values["mobileclip, CPU"].number > 0
    assert "emoji-test_style-captions" in capsys.readouterr().out

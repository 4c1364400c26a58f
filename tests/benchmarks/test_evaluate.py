"""The comparison with CLIP_benchmark: what it measures, that both sides say the same, and a whole run of it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time

import pytest

from benchmarks.evaluate import Comparison, EvaluateBenchSpec, Seconds, cut, run, timed
from mobileclip.data import SkipReport
from mobileclip.evaluation import BenchmarkSample, open_benchmark, write_benchmark
from mobileclip.extras import install_library
from tests.evaluation.datasets.test_writing import PICTURES
from tests.examples.quickstart.drawings import write_packages


def test_time_of_this_process_and_of_those_that_it_starts_counts():
    busy = "import time\nwhile time.process_time() < 0.5: pass"

    def work():
        start = time.process_time()
        while time.process_time() - start < 0.3:
            pass
        subprocess.run([sys.executable, "-c", busy], check=True)
        return {"acc1": 0.5}

    seconds, metrics = timed(work)
    assert metrics == {"acc1": 0.5}
    assert seconds.cpu >= 0.79
    assert seconds.wall >= 0.79

    idle, _ = timed(lambda: time.sleep(0.3) or {})
    assert idle.wall >= 0.3
    assert idle.cpu < seconds.cpu


def test_metrics_that_both_give_are_compared():
    result = Comparison(
        name="set",
        num_images=1,
        num_texts=1,
        mobileclip=Seconds(wall=1, cpu=1),
        clip_benchmark=Seconds(wall=1, cpu=1),
        mobileclip_metrics={"acc1": 0.5, "acc5": 0.75, "main_metric": 0.5},
        clip_benchmark_metrics={"acc1": 0.25, "acc5": 1.0},
    )
    assert result.largest_difference == 0.25


def test_a_part_of_a_set_has_all_classes_and_a_shard_for_each_worker(tmp_path):
    samples = [BenchmarkSample(key=str(number), image=PICTURES["PNG"], label=number % 9) for number in range(40)]
    names = tuple("abcdefghi")
    whole = write_benchmark(tmp_path / "wds_it_test", samples, class_names=names, templates=("{}",))
    part = open_benchmark(cut(tmp_path / "wds_it_test", 10))
    assert (part.name, part.class_names, part.templates) == ("it", names, ("{}",))
    assert list(part.samples(SkipReport())) == samples[:10]
    assert len(part.shards) >= 4
    assert list(whole.samples(SkipReport())) == samples


def test_without_clip_benchmark_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=re.escape(install_library("test", "quickstart"))):
        run(EvaluateBenchSpec())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what CLIP_benchmark, webdataset and scikit-learn warn of is their own
def test_s0_on_a_few_drawings(tmp_path, capsys):
    write_packages(tmp_path / "data" / "download" / "node_modules")
    sets = ("emoji-test_style", "emoji-test_style-captions")
    run(EvaluateBenchSpec(sets=sets, max_images=12, fit_images=8, output=tmp_path))
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [one["name"] for one in results] == list(sets)
    for one in results:
        assert one["num_images"] == 12
        names = one["mobileclip_metrics"].keys() - {"main_metric", "mean_recall@1"}
        assert names == one["clip_benchmark_metrics"].keys()
        assert one["largest_difference"] <= 1 / 12
        assert one["mobileclip"]["cpu"] > 0
    assert "emoji-test_style-captions" in capsys.readouterr().out

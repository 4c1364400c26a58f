"""Every benchmark in small, as its command runs it: it measures what it says, and each number has a place."""

import math

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, bench_of
from benchmarks.harness import run

QUICK = {
    "loss": {"dense", "tiled", "dense memory", "tiled memory", "tiled / dense"},
    "quantization": {"smallest cosine", "mean cosine", "same first results", "of"},
}
SLOW = {
    "data": {"mobileclip", "release", "ratio", "error", "picture"},
    "headline": {"MobileCLIP-S2", "SigLIP ViT-B/16", "CPU ratio", "ratio"},
    "runtimes": {"time", "cosine", "ratio", "of the release's best"},
    "train": {"mobileclip", "open_clip", "ratio", "CPU ratio", "mobileclip memory", "error"},
    "cost_reinforce": {"images", "texts", "device", "price", "npz", "compact8"},
    "collection": {"decode", "encode", "index", "embed", "all compared", "recall of the graph", "open", "merge"},
}


def test_no_benchmark_is_left_out():
    assert {*QUICK, *SLOW} == set(BENCHMARKS)


def inline(function, *arguments, **_):
    return function(*arguments)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's files
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_small_run_measures_what_it_says(name, tmp_path, capsys, monkeypatch):
    if name == "loss":  # a process for each side takes seconds to start
        monkeypatch.setattr(f"benchmarks.{name}.in_own_process", inline)
    before = torch.get_num_threads()
    results = run(bench_of(name)(tiny=True, output=tmp_path / f"{name}.json"), name)
    assert torch.get_num_threads() == before
    assert not [row.failure for row in results.rows if row.failure]
    values = {key: value for row in results.rows for key, value in row.values.items()}
    assert (QUICK | SLOW)[name] <= set(values)
    assert all(math.isfinite(one.number) for row in results.rows for one in row.values.values())
    assert len({tuple(sorted(row.case.items())) for row in results.rows}) == len(results.rows)
    printed = capsys.readouterr().out
    assert all(key in printed for key in (*values, *results.rows[0].case.values()))
    assert (tmp_path / f"{name}.md").exists()

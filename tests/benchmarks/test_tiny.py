"""Every benchmark in small, as its command runs it: it measures what it says, and each number has a place."""

import math

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, bench_of
from benchmarks.harness import run

QUICK = {
    "loss": {"dense", "tiled", "dense memory", "tiled memory", "tiled / dense"},
    "storage": {"a sample", "knowledge", "of pth.gz", "KL image-text 0", "training's three rows"},
    "index_store": {"processor", "disk"},
    "small_vectors": {"a vector in memory", "recall@10", "a query", "of float16's time", "peak memory"},
    "joining": {"time", "index", "scratch", "peak memory"},
    "pointing": {"place", "quadrant", "crops", "chance"},
    "upgrade": {"recall"},
    "concepts": {"text", "always", "where they help", "worse, always", "worse, where they help", "used"},
    "quantization": {"smallest cosine", "mean cosine", "finds", "is found", "step"},
}
SLOW = {
    "data": {"mobileclip", "release", "ratio", "error", "picture"},
    "models": {"mobileclip", "reference", "ratio", "error"},
    "latency": {"time", "ratio", "CPU ratio", "cosine", "error"},
    "roofline": {"time", "share", "calls", "GFLOP", "GFLOP/s", "of the machine", "MB", "GB/s"},
    "headline": {"MobileCLIP-S2", "SigLIP ViT-B/16", "CPU ratio", "ratio"},
    "runtimes": {"time", "cosine", "ratio", "of the release's best"},
    "exports": {"size", "image cosine", "text cosine", "first results", "an image", "a text"},
    "train": {"mobileclip", "open_clip", "ratio", "CPU ratio", "mobileclip memory", "error"},
    "overhead": {"rate", "over plain", "12.8M samples"},
    "reinforce": {"bare passes", "job", "job / bare passes"},
    "cost_reinforce": {"images", "texts", "device", "price", "npz", "compact8"},
    "collection": {"decode", "encode", "index", "embed", "all compared", "recall of the graphs"},
    "search_rivals": {"a photograph", "over index"},
}
# Those that need data sets, the quickstart's drawings and teachers, or all the others, have tests of their own.
OTHERS = {"evaluate", "forms", "curation", "curation_training", "gpu"}


def test_no_benchmark_is_left_out():
    assert {*QUICK, *SLOW, *OTHERS} == set(BENCHMARKS)


def inline(function, *arguments, **_):
    return function(*arguments)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's files
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_small_run_measures_what_it_says(name, tmp_path, capsys, monkeypatch):
    if name in {"loss", "small_vectors"}:  # a process for each side takes seconds to start
        monkeypatch.setattr(f"benchmarks.{name}.in_own_process", inline)
    folder = {"folder": tmp_path / "made"} if name == "exports" else {}
    before = torch.get_num_threads()
    results = run(bench_of(name)(tiny=True, output=tmp_path / f"{name}.json", **folder), name)
    assert torch.get_num_threads() == before
    assert not [row.failure for row in results.rows if row.failure]
    values = {key: value for row in results.rows for key, value in row.values.items()}
    assert (QUICK | SLOW)[name] <= set(values)
    assert all(math.isfinite(one.number) for row in results.rows for one in row.values.values())
    assert len({tuple(sorted(row.case.items())) for row in results.rows}) == len(results.rows)
    printed = capsys.readouterr().out
    assert all(key in printed for key in (*values, *results.rows[0].case.values()))
    assert (tmp_path / f"{name}.md").exists()
    assert (name != "latency") or (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")

"""All that needs a GPU, tried without one: parts end, fail and are told; what is there is not measured again."""

import os
import time
from functools import partial
from pathlib import Path

import attrs
import pytest
import torch

from benchmarks.gpu.__main__ import GpuBenchSpec, chosen, run
from benchmarks.gpu.page import NOTHING, page
from benchmarks.gpu.parts import parts, read_report, train_spec
from benchmarks.gpu.results import Job, Machine, Outcome, PytestCounts, Results, read_results, write_results
from benchmarks.gpu.running import run_apart
from benchmarks.loss import GIB, Measurement
from benchmarks.reinforce import Round
from benchmarks.train import Comparison
from tests.descendants import fail, hang

ROOT = Path(__file__).parents[2]
MACHINE = Machine(device="A card", memory_gib=80, driver="1.2", cuda="13.0", torch="2.13", python="3.12", tiny=False)
LOSS = Measurement(seconds=0.25, cpu_seconds=0.1, bytes=GIB // 4, value=2.0)
OUTCOMES = {
    "tests": Outcome(seconds=9.0, tests=PytestCounts(num_passed=7, num_skipped=2, failed=("tests.a.test_b",))),
    "train s0": Outcome(
        training=Comparison(
            mobileclip=1200.4,
            open_clip=1000.0,
            ratio=1.2004,
            ratio_quartiles=(1.1, 1.3),
            cpu_ratio=1.0,
            memory=(GIB, 2 * GIB),
            error=1e-3,
        )
    ),
    "loss 8192 tiled": Outcome(loss=LOSS),
    "loss 8192 dense": Outcome(loss=attrs.evolve(LOSS, seconds=0.5, bytes=4 * GIB, value=2.0002)),
    "loss 131072 tiled": Outcome(loss=LOSS),
    "loss 131072 dense": Outcome(error="OutOfMemoryError: CUDA out of memory. Tried to allocate 64 GiB. See `docs`."),
    "reinforce job": Outcome(job=Job(num_views=2560, rounds=(Round(bare=2.0, job=4.0),))),
}


def test_limits_leave_time_to_install():
    assert sum(part.limit_seconds for part in parts("cuda", tiny=False).values()) < 23 * 60


def test_training_is_compared_as_gpus_train():
    spec = train_spec("cuda", "s2", compiled=True, tiny=False)
    assert (spec.models, spec.precision, spec.channels_last, spec.compile) == (("s2",), "bfloat16", True, "step")
    assert not train_spec("cpu", "s0", compiled=False, tiny=True).channels_last


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_part_that_takes_too_long_is_ended_with_all_it_started(tmp_path):
    path, log = tmp_path / "pids", tmp_path / "log" / "part.log"
    limit = 15
    outcome = run_apart(partial(hang, path), limit_seconds=limit, log=log)
    assert outcome.error == f"took longer than {limit} seconds; see {log}"
    time.sleep(0.2)
    assert not any(map(is_alive, path.read_text().split()))


def test_a_part_that_fails_is_told(tmp_path):
    failed = run_apart(fail, limit_seconds=60, log=tmp_path / "failed.log")
    assert failed.error == "RuntimeError: no room"
    assert (tmp_path / "failed.log").read_text().startswith("said before\n")


@pytest.mark.slow
def test_a_part_that_dies_is_told(tmp_path):
    died = run_apart(partial(os._exit, 3), limit_seconds=60, log=tmp_path / "died.log")
    assert died.error == f"the process ended with status 3; see {tmp_path / 'died.log'}"


def test_the_page_has_what_was_measured_and_what_was_not():
    text = page(Results(machine=MACHINE, outcomes=OUTCOMES))
    assert "Measured on: A card, 80 GiB, driver 1.2, CUDA 13.0, PyTorch 2.13, Python 3.12." in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert rows[1::2][:1] == ["| 7 | 2 | tests.a.test_b |"]
    assert "| s0 | 1,200 | 1,000 | 1.20 | 1.10 to 1.30 | 1.00 | 2.00 |" in rows
    assert "| 8192 | 0.250 | 0.500 | 0.25 | 4.00 | 1e-04 |" in rows
    assert "| 131072 | 0.250 |  | 0.25 |  |  |" in rows
    assert "- loss 131072 dense: `OutOfMemoryError: CUDA out of memory`" in text
    assert "| 640.0 | 1,280.0 | 2.00 |" in rows
    assert text.count(NOTHING) == 1  # the rates


def test_the_page_of_the_repository_is_the_program_s():
    """Word for word but for the figures, whether there are any yet or not."""
    there = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()
    for line in page(None).splitlines():
        assert line in there or line == NOTHING


def test_results_are_read_again_and_not_mixed(tmp_path):
    path = tmp_path / "gpu.json"
    assert not read_results(path, MACHINE).outcomes
    results = Results(machine=MACHINE, outcomes=OUTCOMES)
    write_results(path, results)
    assert read_results(path, MACHINE) == results
    with pytest.raises(ValueError, match=r"was measured on A card, .* and this is Another card, .*choose another --ou"):
        read_results(path, attrs.evolve(MACHINE, device="Another card"))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not a valid Results: .*remove the file"):
        read_results(path, MACHINE)


def test_a_report_of_pytest_is_read(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/><testcase classname="a" name="two"><skipped/>'
        '</testcase><testcase classname="b" name="three"><failure>x</failure></testcase></testsuite></testsuites>'
    )
    assert read_report(path) == PytestCounts(num_passed=1, num_skipped=1, failed=("b.three",))


def test_unknown_parts_and_a_missing_gpu_are_told(monkeypatch):
    assert list(chosen(GpuBenchSpec(only=("loss 8192",)))) == ["loss 8192 tiled", "loss 8192 dense"]
    with pytest.raises(ValueError, match="no part begins with 'los 1'; there are: tests, train s0, "):
        chosen(GpuBenchSpec(only=("los 1",)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here; --device cpu --tiny"):
        run(GpuBenchSpec())


def test_a_second_run_does_what_is_missing(tmp_path, capsys):
    spec = GpuBenchSpec(device="cpu", tiny=True, output=tmp_path / "out" / "gpu.json", only=("loss 64 tiled",))
    first = run(spec)
    assert first.outcomes["loss 64 tiled"].loss.seconds > 0
    again = run(spec)
    assert again == first
    assert "0 of 1 parts are to be measured" in capsys.readouterr().err
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "the figures mean nothing" in text
    assert "| 64 | 0." in text


@pytest.mark.slow
def test_everything_runs_on_the_cpu(tmp_path):
    results = run(GpuBenchSpec(device="cpu", tiny=True, output=tmp_path / "gpu.json"))
    assert list(results.outcomes) == list(parts("cpu", tiny=True))
    assert not {name: one.error for name, one in results.outcomes.items() if one.error is not None}
    assert results.outcomes["tests"].tests.num_passed > 200
    assert not results.outcomes["tests"].tests.failed
    assert (tmp_path / "gpu.md").read_text().count(NOTHING) == 0

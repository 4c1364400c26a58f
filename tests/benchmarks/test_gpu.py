"""All that needs a GPU, tried without one: which parts there are, how long they may take, and the page of them."""

from pathlib import Path

import attrs
import pytest
import torch

from benchmarks.gpu import NOTHING, GpuBenchSpec, page, parts, read_report, train_spec
from benchmarks.harness import Machine, Results, Row, Value, run

ROOT = Path(__file__).parents[2]
CARD = "A card, 80 GiB, driver 1.2, CUDA 13.0"
MACHINE = Machine(processor="A processor", threads=2, card=CARD, torch="2.13", python="3.12")
ROWS = (
    Row(case={"part": "tests"}, values={"passed": Value(number=7), "failed": Value(number=1)}),
    Row(case={"part": "train s0"}, values={"mobileclip": Value(number=1200.4, unit="samples/s")}),
    Row(case={"part": "loss 131072"}, failure="OutOfMemoryError: CUDA out of memory. Tried to allocate. See `docs`."),
    Row(case={"part": "job"}, values={"job / bare passes": Value(number=2.0)}),
)


def test_limits_leave_time_to_install():
    assert sum(part.limit_seconds for part in parts("cuda", tiny=False)) < 23 * 60


def test_training_is_compared_as_gpus_train():
    spec = train_spec("cuda", "s2", compiled=True)
    assert (spec.models, spec.precision, spec.channels_last, spec.compile) == (("s2",), "bfloat16", True, "step")
    assert not train_spec("cpu", "s0", compiled=False).channels_last


def test_the_page_has_what_was_measured_and_what_was_not():
    text = page(Results(benchmark="gpu", choices={}, machine=MACHINE, rows=ROWS))
    assert f"Measured on: {CARD}, PyTorch 2.13, Python 3.12." in text
    assert "| tests | 7 | 1 |" in text
    assert "| part | mobileclip, samples/s |" in text
    assert "| train s0 | 1,200 |" in text
    assert "- loss 131072: `OutOfMemoryError: CUDA out of memory`" in text
    assert "| job | 2 |" in text
    assert text.count(NOTHING) == 1  # the rates


def test_the_page_of_the_repository_is_the_program_s():
    """Word for word but for the figures, whether there are any yet or not."""
    there = (ROOT / "docs" / "lab" / "gpu.md").read_text(encoding="utf-8").splitlines()
    for line in page(None).splitlines():
        assert line in there or line == NOTHING


def test_a_report_of_pytest_is_read(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/><testcase classname="a" name="two"><skipped/>'
        '</testcase><testcase classname="b" name="three"><failure>x</failure></testcase></testsuite></testsuites>'
    )
    row = read_report(path)
    assert {name: value.number for name, value in row.values.items()} == {"passed": 1, "skipped": 1, "failed": 1}
    assert row.notes == {"which": "b.three"}


def test_unknown_parts_and_a_missing_gpu_are_told(monkeypatch):
    spec = GpuBenchSpec(device="cpu", only=("loss 8192", "train b"))
    assert [case.labels["part"] for case in spec.cases()] == ["train b", "loss 8192"]
    with pytest.raises(ValueError, match="no part begins with 'los 1'; there are: tests, train s0, "):
        list(attrs.evolve(spec, only=("los 1",)).cases())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here; --device cpu --tiny"):
        list(GpuBenchSpec().cases())


@pytest.mark.slow
def test_everything_runs_on_the_cpu(tmp_path):
    results = run(GpuBenchSpec(device="cpu", tiny=True, output=tmp_path / "gpu.json"), "gpu")
    assert [row.case["part"] for row in results.rows][:3] == ["tests", "train s0", "loss 64"]
    assert {row.case["part"]: row.failure for row in results.rows if row.failure} == {}
    assert results.rows[0].values["passed"].number > 200
    assert results.rows[0].values["failed"].number == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text.count(NOTHING) == 0
    assert "the figures mean nothing" in text

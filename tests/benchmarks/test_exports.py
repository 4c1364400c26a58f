"""The matrix of exports: which cells it has, what is kept of them, and that one that fails is one line of it."""

import os

import attrs
import pytest

from benchmarks.exports import (
    Cell,
    ExportsBenchSpec,
    Loss,
    Measured,
    Outcome,
    cells,
    markdown,
    measure,
    measure_apart,
)
from benchmarks.exports.__main__ import run
from benchmarks.lines import read_lines, write_lines
from mobileclip.inference.comparison import LEAST_COSINE

CELL = Cell(model="icons", target="onnx", precision="int8")
LOSS = Loss(dataset="drawings", metric="acc1", model=0.5, export=0.48, low=-0.03, high=-0.01, num_images=100)
MEASURED = Measured(
    megabytes=1.25,
    cosines=(0.98765, 1 - 2e-12),
    agreement=0.95,
    failures=("ranking agreement is 0.95, expected >= 0.99",),
    kept=3,
    image_ms=1.5,
    text_ms=0.25,
    seconds=3.0,
    loss=LOSS,
)


class Crash:
    """What ends the process that reads it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_format_has_the_cells_of_its_precisions():
    spec = ExportsBenchSpec(models=("a.pt", "b.pt"), targets=("coreai", "litert"), precisions=("float32", "int8"))
    assert [(one.model, one.target, one.precision) for one in cells(spec)] == [
        ("a.pt", "coreai", "float32"),
        ("a.pt", "litert", "float32"),
        ("a.pt", "litert", "int8"),
        ("b.pt", "coreai", "float32"),
        ("b.pt", "litert", "float32"),
        ("b.pt", "litert", "int8"),
    ]
    assert str(Cell(model="random:folder/s0", target="onnx", precision="int8")) == "s0_onnx_int8"


def test_what_was_measured_is_read_again(tmp_path):
    path = tmp_path / "exports.jsonl"
    assert read_lines(path, Outcome) == []
    outcomes = [
        Outcome(cell=CELL, machine="a processor", measured=MEASURED),
        Outcome(cell=attrs.evolve(CELL, target="torch"), machine="a processor", failure="it fell over"),
    ]
    write_lines(path, outcomes)
    assert read_lines(path, Outcome) == outcomes
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"exports.jsonl, line 1: .*remove the file"):
        read_lines(path, Outcome)


def test_the_table_says_what_failed_and_why():
    lines = markdown(
        [
            Outcome(cell=CELL, machine="", measured=MEASURED),
            Outcome(cell=CELL, machine="", measured=attrs.evolve(MEASURED, failures=(), kept=0, loss=None)),
            Outcome(cell=attrs.evolve(CELL, target="torch"), machine="", failure="it fell over"),
        ]
    ).splitlines()
    assert lines[2] == (
        "| icons | onnx | int8 | 1.2 | 0.98765, 1 - 2e-12 | 95.0 % | 48.00 %, -2.00 (-3.00 to -1.00) | 1.50, 0.25 | "
        "failed: ranking agreement is 0.95, expected >= 0.99, 3 layers wider |"
    )
    assert lines[3].endswith("| 95.0 % |  | 1.50, 0.25 | passed |")
    assert lines[4] == "| icons | torch | int8 |  |  |  |  |  | failed |"
    assert lines[-1] == "- icons_torch_int8: it fell over"


def test_an_error_is_what_came_of_a_cell(tmp_path):
    outcome = measure(ExportsBenchSpec(output=tmp_path), Cell(model="icons", target="litert", precision="float32"))
    assert outcome.measured is None
    assert "--set converter=litert-converter/bin/python" in outcome.failure


@pytest.mark.slow
def test_a_crash_ends_one_cell():
    assert "the process was ended" in measure_apart(Crash(), CELL).failure


@pytest.mark.slow
def test_the_small_matrix_whole(tmp_path, capsys):
    spec = ExportsBenchSpec(output=tmp_path, tiny=True)
    run(spec)
    (outcome,) = read_lines(tmp_path / "exports.jsonl", Outcome)
    assert outcome.failure is None
    assert outcome.measured.failures == ()
    assert outcome.measured.megabytes > 1
    assert "| icons | onnx | float32 |" in (tmp_path / "exports.md").read_text()
    written = (tmp_path / "exports.jsonl").read_text()
    run(spec)
    assert (tmp_path / "exports.jsonl").read_text() == written, "what is known is not measured again"
    assert "1 cells from before: 0 are left" in capsys.readouterr().out


@pytest.mark.slow
def test_random_weights_tell_pictures_and_texts_apart(tmp_path):
    spec = ExportsBenchSpec(output=tmp_path, rounds=1)
    outcome = measure(spec, Cell(model="random:mobileclip_s0", target="onnx", precision="float32"))
    assert outcome.failure is None
    assert (outcome.measured.failures, outcome.measured.loss) == ((), None)
    assert min(outcome.measured.cosines) > LEAST_COSINE["float32"]

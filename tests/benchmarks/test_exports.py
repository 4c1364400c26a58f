"""The matrix of exports: which cells it has, and that one that fails or crashes is one line of it."""

import os

import attrs
import pytest

from benchmarks.exports import ExportsBenchSpec, measure
from benchmarks.harness import Case, run
from mobileclip.inference.comparison import LEAST_COSINE


def test_a_format_has_the_cells_of_its_precisions():
    spec = ExportsBenchSpec(
        models=("a.pt", "b.pt"), targets=("coreml", "litert"), precisions=("float32", "int8-weights")
    )
    assert [tuple(case.labels.values()) for case in spec.cases()] == [
        ("a.pt", "coreml", "float32"),
        ("a.pt", "litert", "float32"),
        ("a.pt", "litert", "int8-weights"),
        ("b.pt", "coreml", "float32"),
        ("b.pt", "litert", "float32"),
        ("b.pt", "litert", "int8-weights"),
    ]
    assert all(case.apart for case in spec.cases())


@attrs.frozen(kw_only=True)
class Crashing(ExportsBenchSpec):
    """Two cells: the process of the first ends, and the second has no converter."""

    def cases(self):
        (litert,) = attrs.evolve(self, targets=("litert",), precisions=("float32",)).base_cases()
        return [Case(labels={"model": "crash"}, measure=crash, apart=True), litert]

    def base_cases(self):
        return super().cases()


def crash():
    os._exit(3)


@pytest.mark.slow
def test_a_crash_and_an_error_are_one_line_each(tmp_path):
    crashed, failed = run(Crashing(folder=tmp_path), "exports").rows
    assert "the process ended with status 3" in crashed.failure
    assert "--set converter=litert-converter/bin/python" in failed.failure


def test_an_error_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="--set converter=litert-converter/bin/python"):
        measure(ExportsBenchSpec(folder=tmp_path), "icons", "litert", "float32")


@pytest.mark.slow
def test_random_weights_tell_pictures_and_texts_apart(tmp_path):
    spec = ExportsBenchSpec(folder=tmp_path, rounds=1)
    (row,) = measure(spec, "random:mobileclip_s0", "onnx", "float32")
    assert row.notes == {"gates": "passed"}
    assert min(row.values[f"{tower} cosine"].number for tower in ("image", "text")) > LEAST_COSINE["float32"]
    assert (tmp_path / "mobileclip_s0.safetensors").exists()

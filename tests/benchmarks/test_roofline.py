"""The roofline: operators have their kinds, their work is counted, and the page has the table of its results."""

from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from benchmarks.harness import Machine, Results
from benchmarks.roofline import RooflineBenchSpec, machine_rows, page_table, row_of
from benchmarks.roofline_operators import KINDS, Work, kind_of, work_of
from mobileclip.serialization import from_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("dense convolutions", ["Convolution", "aten::mkldnn_convolution"]),
        ("depthwise convolutions", ["GroupConvolution"]),
        ("linear layers", ["FullyConnectedQuantizedLegacy", "Gemm", "aten::addmm", "aten::mm"]),
        ("attention", ["MatMul", "FusedMatMul", "Softmax", "aten::bmm", "PowerStatic"]),
        ("norms", ["MVN", "LayerNormalization", "aten::native_layer_norm"]),
        ("activations and sums", ["Gelu", "Add", "aten::mul", "ReduceMean"]),
        ("rounding", ["FakeQuantize", "QuantizeLinear"]),
        ("layout", ["Reorder", "Transpose", "ReorderInput", "Convert", "aten::copy_", "aten::t"]),
        ("other", ["TopK", "aten::tanh", "GatherElements"]),
    ],
)
def test_operators_of_all_runtimes_have_a_kind(kind, names):
    assert kind in KINDS
    assert {kind_of(name) for name in names} == {kind}


def test_what_the_name_does_not_say_the_shapes_do():
    assert kind_of("Conv", (8, 1, 3, 3)) == "depthwise convolutions"
    assert kind_of("Conv", (8, 4, 3, 3)) == "dense convolutions"
    assert kind_of("MatMul", rank=3) == "linear layers"
    assert kind_of("MatMul", rank=4) == "attention"


def test_the_work_of_a_tower_is_counted_by_kind():
    tower = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(), nn.Linear(128, 5))
    work = work_of(tower, torch.zeros(2, 3, 4, 4), item_size=4)
    assert {kind: one.operations for kind, one in work.items()} == {
        "dense convolutions": 2 * 2 * 16 * 3 * 8,
        "depthwise convolutions": 2 * 2 * 16 * 8 * 9,
        "linear layers": 2 * 2 * 128 * 5,
    }
    # Images, weights, biases and what comes out, of four bytes each.
    assert work["dense convolutions"].num_bytes == 4 * (2 * 3 * 16 + 8 * 3 + 8 + 2 * 8 * 16)


def test_shares_and_rates_are_of_the_whole_and_of_the_machine():
    values = row_of("linear layers", 2.0, Work(4_000_000, 3_000_000), calls=5, whole=8.0, reached=10.0).values
    numbers = {name: value.number for name, value in values.items()}
    assert numbers == {
        "calls": 5,
        "time": 2,
        "share": 25,
        "GFLOP": pytest.approx(0.004),
        "GFLOP/s": pytest.approx(2),
        "of the machine": pytest.approx(20),
        "MB": 3,
    }
    assert set(row_of("layout", 2.0, Work(), whole=8.0, reached=10.0).values) == {"time", "share"}


@pytest.fixture(scope="module")
def results():
    case = {"model": "s0", "tower": "image", "batch": "1", "form": "openvino"}
    rows = [attrs.evolve(row, case={"model": "the machine", **row.case}) for row in machine_rows()]
    for kind, ms in (("all", 8.0), ("linear layers", 6.0), ("between operators", 2.0)):
        work = Work(4_000_000, 1) if kind != "between operators" else Work()
        row = row_of(kind, ms, work, whole=8.0, reached=10.0)
        rows.append(attrs.evolve(row, case={**case, **row.case}))
    return Results(benchmark="roofline", choices={}, machine=Machine.here(), rows=tuple(rows))


def test_the_machine_is_measured_in_every_precision(results):
    measured = {row.case["operators"]: row.values for row in results.rows if row.case["model"] == "the machine"}
    assert [name for name in measured if name.startswith("product")] == [
        f"product in {precision}" for precision in ("float32", "bfloat16", "int8")
    ]
    assert all(value.number > 0 for values in measured.values() for value in values.values())


def test_a_page_has_the_table_between_its_marks(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- roofline -->\nold\n<!-- /roofline -->\nbehind\n", encoding="utf-8")
    for _ in range(2):
        RooflineBenchSpec(page=page).finish(results)
    written = page.read_text(encoding="utf-8")
    assert written == f"before\n<!-- roofline -->\n{page_table(results)}<!-- /roofline -->\nbehind\n"
    assert from_json(page.with_suffix(".json").read_text("utf-8"), Results) == results
    assert "| s0 image 1 openvino | 8 | 0.004 | 0.5 | 5 | 75 | 25 |\n" in written


def test_the_page_of_the_documentation_is_what_its_results_give():
    path = ROOT / "docs" / "roofline.json"
    found = from_json(path.read_text("utf-8"), Results)
    assert f"<!-- roofline -->\n{page_table(found)}<!-- /roofline -->" in path.with_suffix(".md").read_text("utf-8")

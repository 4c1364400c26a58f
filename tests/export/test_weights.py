"""Weights of 8 and 4 bits: what is stored, what it stands for, and that runtimes compute with it in float32."""

from functools import partial

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mobileclip.encoders import DualEncoderSpec
from mobileclip.export import ExportSpec, export_model, read_contract, read_report, targets, verify_export
from mobileclip.export.describing import tower_file
from mobileclip.export.towers import BLOCK, bits_of, round_weight, rounded_to
from mobileclip.export.verification import fallbacks, stored_layers
from tests.errors import fails
from tests.export.models import CAUSAL, MCI, SHALLOW, VIT, few_samples, int8_export, seeing

# Rows that four bits fit.
WIDE = DualEncoderSpec(
    image=attrs.evolve(MCI, stages=tuple(attrs.evolve(stage, dim=32 * stage.dim // 8) for stage in MCI.stages)),
    text=attrs.evolve(CAUSAL, width=32, depth=1),
)


@pytest.fixture(scope="module")
def wide():
    return seeing(WIDE)


def test_eight_bits_are_to_half_a_step_of_each_row():
    rows = torch.randn(5, 48) * torch.logspace(-3, 3, 5)[:, None] + torch.arange(5)[:, None]
    rounded = round_weight(rows, 8)
    assert rounded.steps.shape == (5, 1, 48)
    step = (rows.amax(1).clamp_min(0) - rows.amin(1).clamp_max(0)) / 255
    assert ((rounded.restored() - rows).abs() <= 1.001 * step[:, None]).all()
    assert round_weight(torch.zeros(2, 3), 8).restored().equal(torch.zeros(2, 3))


def test_four_bits_are_to_a_step_of_each_block():
    rows = torch.randn(3, 2 * BLOCK)
    rows[0, :BLOCK] *= 1000
    rounded = round_weight(rows, 4)
    assert int(rounded.steps.max()) == 15
    assert rounded.scale.shape == (3, 2, 1)
    error = (rounded.restored() - rows).abs().reshape(3, 2, BLOCK)
    assert (error <= 1.001 * rounded.scale).all()
    assert error[0, 1].max() < 1, "the large block beside it has a scale of its own"
    assert rounded_to(rows[:, :30], 4).equal(round_weight(rows[:, :30], 8).restored()), "rows that no block fits"


def test_grouped_convolutions_and_kept_layers_have_more_bits():
    grouped, linear = nn.Conv2d(64, 64, 3, groups=64), nn.Linear(64, 8)
    assert bits_of(nn.Conv2d(64, 8, 1), "int4-weights", is_kept=False) == 4, "of one group"
    assert [bits_of(layer, "int8-weights", is_kept=False) for layer in (grouped, linear)] == [8, 8]
    assert bits_of(linear, "int8-weights", is_kept=True) is None
    assert [bits_of(layer, "int4-weights", is_kept=False) for layer in (grouped, linear)] == [None, 4]
    assert bits_of(linear, "int4-weights", is_kept=True) == 8
    assert bits_of(nn.Linear(48, 8), "int4-weights", is_kept=False) == 8


@pytest.mark.parametrize(
    ("tower", "precision", "is_mixed"),
    [
        ("text", "int4-weights", True),
        *(
            pytest.param(tower, precision, is_mixed, marks=pytest.mark.slow)
            for tower, precision, is_mixed in (
                ("image", "int4-weights", True),
                ("image", "int8-weights", False),
                ("image", "int8-weights", True),
                ("text", "int8-weights", False),
            )
        ),
    ],
)
def test_a_file_gives_what_its_rounded_weights_give(wide, tower, precision, is_mixed, tmp_path):
    export = int8_export(wide, tower, target="onnx", every=24, dynamic_batch=True)
    kept = frozenset(name for name, _ in stored_layers(export.encoder)[1::3]) if is_mixed else frozenset()
    spec = attrs.evolve(export.spec, precision=precision)
    export = attrs.evolve(export, spec=spec, fallback=attrs.evolve(export.fallback, layers=kept))
    assert targets["onnx"].export(export, tmp_path / "tower.onnx") == "float32"
    graph = export.graph(torch.float32)
    expected_bytes = 0
    with torch.no_grad():
        for name, layer in stored_layers(graph.encoder):
            bits = bits_of(layer, precision, is_kept=name in kept)
            expected_bytes += layer.weight.numel() * (bits or 32) // 8
            if bits is not None:
                layer.weight.copy_(rounded_to(layer.weight, bits))
        expected = graph(export.calibration)
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {export.input_name: export.calibration.numpy()})
    np.testing.assert_allclose(given, expected, atol=2e-5)
    stored = onnx.load(tmp_path / "tower.onnx").graph.initializer
    steps = [tensor for tensor in stored if tensor.name.endswith(".steps")]
    assert {tensor.data_type for tensor in steps} == {onnx.TensorProto.UINT8}
    kept_bytes = sum(
        onnx.numpy_helper.to_array(tensor).nbytes
        for tensor in stored
        if tensor.name.endswith(".steps") or (len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT)
    )
    scales = sum(onnx.numpy_helper.to_array(one).nbytes for one in stored if one.name.endswith(".scale"))
    positions = 4 * wide.text_encoder.position.numel() if tower == "text" else 4 * 2 * 3
    assert kept_bytes - scales <= expected_bytes + positions + 64 * len(graph.encoder.state_dict())


def test_layers_get_more_bits_as_a_gate_needs_it(wide):
    encoder = int8_export(wide, "text", target="onnx", every=24).encoder
    tokens = torch.randint(0, 600, (4, 12))
    of_eight, of_four = (
        [fallback.layers for fallback in fallbacks(encoder, tokens, precision)]
        for precision in ("int8-weights", "int4-weights")
    )
    names = {name for name, _ in stored_layers(encoder)}
    assert "token_embedding" in names
    assert [len(layers) for layers in of_eight] == sorted({len(layers) for layers in of_eight})
    assert of_four[0] == frozenset()
    assert of_four[-1] == names
    assert of_four[1] < of_four[2] < of_four[3] < of_four[4]


def test_an_export_says_what_it_stores(tmp_path):
    spec = ExportSpec(out=tmp_path / "out", precision="int8-weights", tower="text", normalize=False)
    folder = export_model(seeing(SHALLOW), spec, samples=few_samples())
    contract = read_contract(folder)
    assert contract.precision == "int8-weights"
    assert {(tower.compute, tower.eight_bits) for tower in contract.towers} == {("float32", ())}
    assert verify_export(folder) == read_report(folder)
    assert read_report(folder).passed


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize(("precision", "least"), [("int8-weights", 0.999), ("int4-weights", 0.97)])
def test_openvino_stores_them_by_its_own_tools(wide, tower, precision, least, tmp_path):
    export = int8_export(wide, tower, target="openvino", every=24)
    spec = attrs.evolve(export.spec, precision=precision)
    written = {}
    for name, layers in (("few", ()), ("more", [name for name, _ in stored_layers(export.encoder)[1::3]])):
        fallback = attrs.evolve(export.fallback, layers=frozenset(layers))
        path = tmp_path / f"{name}.xml"
        export = attrs.evolve(export, spec=spec, fallback=fallback)
        assert targets["openvino"].export(export, path) == "float32"
        written[name] = path.with_suffix(".bin").stat().st_size
        file = tower_file(export, path.name, "float32")
        targets["openvino"].inspect(path, file)
        run = targets["openvino"].open(path, file)
        given = torch.cat([run(row)[0] for row in torch.split(export.calibration, 1)])
        with torch.no_grad():
            expected = export.graph(torch.float32)(export.calibration)
        assert float(torch.cosine_similarity(given, expected).min()) > least
    assert written["few"] < written["more"]


@pytest.mark.slow
def test_layers_of_eight_bits_are_named(tmp_path):
    model = seeing(DualEncoderSpec(image=attrs.evolve(VIT, width=32, depth=1), text=WIDE.text))
    folder = export_model(model, ExportSpec(out=tmp_path / "out", precision="int4-weights"))
    towers = read_contract(folder).towers
    assert all(not tower.float32 for tower in towers)
    assert any(tower.eight_bits for tower in towers)


@pytest.mark.parametrize("target", ["coreai", "coreml", "executorch", "torch"])
def test_targets_without_them_say_so(target, tmp_path):
    refused = partial(export_model, seeing(SHALLOW))
    with fails("export.target-precision-choose-precision", target, "int4-weights", "float32"):
        refused(ExportSpec(out=tmp_path / "out", target=target, precision="int4-weights"))
    assert not list(tmp_path.iterdir())

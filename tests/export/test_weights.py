"""Weights of 8 bits: what is stored, what it stands for, and that runtimes compute with it in float32."""

import json
import shutil

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mobileclip.export import ExportSpec, export_model, read_contract, read_report, targets, verify_export
from mobileclip.export.describing import tower_file
from mobileclip.export.towers import fallbacks, round_weight, stored_layers
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, SHALLOW, few_samples, one_tower, seeing


@pytest.fixture(scope="module")
def model():
    return seeing(attrs.evolve(SHALLOW, image=CONVOLUTIONAL.image))


def test_eight_bits_are_to_half_a_step_of_each_row():
    rows = torch.randn(5, 48) * torch.logspace(-3, 3, 5)[:, None] + torch.arange(5)[:, None]
    rounded = round_weight(rows)
    assert (rounded.steps.shape, rounded.steps.dtype, rounded.scale.shape) == ((5, 48), torch.uint8, (5, 1))
    step = (rows.amax(1).clamp_min(0) - rows.amin(1).clamp_max(0)) / 255
    assert ((rounded.restored() - rows).abs() <= 1.001 * step[:, None]).all()
    assert round_weight(torch.zeros(2, 3)).restored().equal(torch.zeros(2, 3))


@pytest.mark.parametrize("tower", ["text", pytest.param("image", marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_mixed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_file_gives_what_its_rounded_weights_give(model, tower, is_mixed, tmp_path):
    export = one_tower(model, tower, target="onnx", precision="int8-weights", every=24, dynamic_batch=True)
    kept = frozenset(name for name, _ in stored_layers(export.encoder)[1::3]) if is_mixed else frozenset()
    export = attrs.evolve(export, fallback=attrs.evolve(export.fallback, layers=kept))
    assert targets["onnx"].export(export, tmp_path / "tower.onnx").compute == "float32"
    graph, rounded = export.graph(torch.float32), 0
    with torch.no_grad():
        for name, layer in stored_layers(graph.encoder):
            if name not in kept:
                rounded += layer.weight.numel()
                layer.weight.copy_(round_weight(layer.weight.flatten(1)).restored().reshape(layer.weight.shape))
        expected = graph(export.calibration)
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {export.input_name: export.calibration.numpy()})
    np.testing.assert_allclose(given, expected, atol=2e-5)
    stored = onnx.load(tmp_path / "tower.onnx").graph.initializer
    steps = [onnx.numpy_helper.to_array(tensor) for tensor in stored if tensor.name.endswith(".steps")]
    assert {one.dtype for one in steps} == {np.dtype(np.uint8)}
    assert sum(one.nbytes for one in steps) == rounded


def test_layers_stay_in_float32_as_a_gate_needs_it(model):
    encoder = one_tower(model, "text", target="onnx", every=24).encoder
    found = [one.layers for one in fallbacks(encoder, torch.randint(0, 600, (4, 12)), "int8-weights")]
    assert "token_embedding" in {name for name, _ in stored_layers(encoder)}
    assert [len(layers) for layers in found] == sorted({len(layers) for layers in found})


def test_an_export_says_what_it_stores(tmp_path):
    spec = ExportSpec(output=tmp_path / "out", precision="int8-weights", tower="text", normalize=False)
    folder = export_model(seeing(SHALLOW), spec, samples=few_samples())
    contract = read_contract(folder)
    assert contract.precision == "int8-weights"
    assert {tower.compute for tower in contract.towers} == {"float32"}
    assert verify_export(folder) == read_report(folder)
    assert read_report(folder).passed


def test_four_bits_are_refused_by_name(plain_torch, tmp_path):
    """They were larger than eight; what earlier versions wrote is told what to do."""
    with fails("export.int4-weights-longer-files"):
        ExportSpec(output=tmp_path, precision="int4-weights")
    old = shutil.copytree(plain_torch, tmp_path / "old")
    contract = json.loads((old / "mobileclip.json").read_text())
    (old / "mobileclip.json").write_text(json.dumps(contract | {"precision": "int4-weights"}))
    with fails("export.read-damaged-another-version", "choose int8-weights"):
        verify_export(old)


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
def test_openvino_stores_them_by_its_own_tools(transformers, tower, tmp_path):
    export = one_tower(transformers, tower, target="openvino", precision="int8-weights", every=24)
    written = {}
    for name, layers in (("few", ()), ("more", [name for name, _ in stored_layers(export.encoder)[1::3]])):
        path = tmp_path / f"{name}.xml"
        export = attrs.evolve(export, fallback=attrs.evolve(export.fallback, layers=frozenset(layers)))
        file = tower_file(export, path.name, targets["openvino"].export(export, path))
        assert file.compute == "float32"
        written[name] = path.with_suffix(".bin").stat().st_size
        run = targets["openvino"].open(path, file)
        given = torch.cat([run(row)[0] for row in torch.split(export.calibration, 1)])
        with torch.no_grad():
            expected = export.graph(torch.float32)(export.calibration)
        assert float(torch.cosine_similarity(given, expected).min()) > 0.999
    assert written["few"] < written["more"]

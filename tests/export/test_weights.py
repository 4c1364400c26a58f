"""Weights of 8 bits: what is stored, what it stands for, and that runtimes compute with it in float32."""

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mobileclip.export import ExportSpec, export_model, read_contract, read_report, targets, verify_export
from mobileclip.export.int8 import round_weight
from tests.export.models import CONVOLUTIONAL, SHALLOW, few_samples, one_tower, seeing


@pytest.fixture(scope="module")
def model():
    return seeing(attrs.evolve(SHALLOW, image=CONVOLUTIONAL.image))


def restored(weight):
    """The weight that steps stand for."""
    return (weight.steps.float() - weight.zero.float()) * weight.scale


def is_grouped(layer):
    return getattr(layer, "groups", 1) > 1


def test_eight_bits_are_to_half_a_step_of_each_row():
    rows = torch.randn(5, 48) * torch.logspace(-3, 3, 5)[:, None] + torch.arange(5)[:, None]
    rounded = round_weight(rows)
    assert (rounded.steps.shape, rounded.steps.dtype, rounded.scale.shape) == ((5, 48), torch.uint8, (5, 1))
    step = (rows.amax(1).clamp_min(0) - rows.amin(1).clamp_max(0)) / 255
    assert ((restored(rounded) - rows).abs() <= 1.001 * step[:, None]).all()
    assert restored(round_weight(torch.zeros(2, 3))).equal(torch.zeros(2, 3))


@pytest.mark.parametrize("tower", ["text", pytest.param("image", marks=pytest.mark.slow)])
def test_a_file_gives_what_its_rounded_weights_give(model, tower, tmp_path):
    export = one_tower(model, tower, target="onnx", precision="int8-weights", every=24, dynamic_batch=True)
    assert targets["onnx"].export(export, tmp_path / "tower.onnx").compute == "float32"
    graph, rounded = export.graph(torch.float32), 0
    with torch.no_grad():
        for layer in graph.encoder.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding)) and not is_grouped(layer):
                rounded += layer.weight.numel()
                layer.weight.copy_(restored(round_weight(layer.weight.flatten(1))).reshape(layer.weight.shape))
        expected = graph(export.calibration)
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {export.input_name: export.calibration.numpy()})
    np.testing.assert_allclose(given, expected, atol=2e-5)
    stored = onnx.load(tmp_path / "tower.onnx").graph.initializer
    steps = [onnx.numpy_helper.to_array(tensor) for tensor in stored if tensor.name.endswith(".steps")]
    assert {one.dtype for one in steps} == {np.dtype(np.uint8)}
    assert sum(one.nbytes for one in steps) == rounded


def test_an_export_says_what_it_stores(tmp_path):
    spec = ExportSpec(output=tmp_path / "out", precision="int8-weights", tower="text", normalize=False)
    folder = export_model(seeing(SHALLOW), spec, samples=few_samples())
    contract = read_contract(folder)
    assert contract.precision == "int8-weights"
    assert {tower.compute for tower in contract.towers} == {"float32"}
    assert verify_export(folder) == read_report(folder)
    assert read_report(folder).passed

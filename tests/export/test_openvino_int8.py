"""Static int8 in OpenVINO: what is stored in it, what is not, and where the ranges come from."""

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.export import ExportSpec, export_model, read_contract, read_report, targets, verify_export
from mobileclip.inference.optimization import import_quietly, weighted_layers
from tests.export.models import few_samples, int8_export

pytestmark = pytest.mark.slow  # half a minute; that of ONNX, whose layers are chosen alike, runs by default

ov = import_quietly("openvino")
WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


tower_export = partial(int8_export, target="openvino")


def written(export, folder):
    """The model that the target writes of a tower, as the runtime reads it."""
    assert targets["openvino"].export(export, folder / "tower.xml") == "int8"
    return ov.Core().read_model(folder / "tower.xml", folder / "tower.bin")


def source(node, index):
    return node.input_value(index).get_node()


def stored_weight(node):
    """The weight of an operation: (stored values, scales of them, or None where they are float); None without one."""
    weight = source(node, 1)
    if weight.get_type_name() == "Constant":
        return weight.get_data(), None
    if weight.get_type_name() == "Reshape":
        weight = source(weight, 0)
    if weight.get_type_name() != "Multiply" or source(weight, 0).get_type_name() != "Convert":
        return None
    values, scales = source(source(weight, 0), 0), source(weight, 1)
    return (values.get_data(), scales.get_data()) if values.get_type_name() == "Constant" else None


def layers_of(model):
    """The convolutions and linear layers: (operation, stored weight, scales)."""
    found = [(node, stored_weight(node)) for node in model.get_ops() if node.get_type_name() in WEIGHTED]
    return [(node, *stored) for node, stored in found if stored is not None]


def squeezes(export):
    return {name for name, _ in weighted_layers(export.encoder) if "squeeze_excite" in name}


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("architecture", ["convolutional", "transformers"])
def test_every_weight_is_int8_with_a_scale_for_each_output_channel(architecture, tower, request, tmp_path):
    export = tower_export(request.getfixturevalue(architecture), tower)
    model = written(export, tmp_path)
    found = layers_of(model)
    expected = {name: layer.weight.detach().flatten(1).numpy() for name, layer in weighted_layers(export.encoder)}
    assert len(found) == len(expected)
    for node, weight, scales in found:
        rows = weight.reshape(-1, np.prod(weight.shape[2:] if weight.ndim == 5 else weight.shape[1:], dtype=int))
        if scales is None:
            (name,) = [name for name, theirs in expected.items() if np.array_equal(theirs, rows)]
            assert name in squeezes(export), name
            expected.pop(name)
            continue
        assert weight.dtype == np.int8
        depthwise = node.get_type_name() == "GroupConvolution"
        assert abs(weight.astype(int)).max() <= (127 if depthwise else 64)
        assert scales.size == len(rows)
        ours, half_a_step = rows * scales.reshape(-1, 1), 0.501 * scales.reshape(-1, 1)
        # Each is the weight of one of the model's layers, to half a step of its channel.
        near = [
            name
            for name, theirs in expected.items()
            if theirs.shape == ours.shape and (abs(theirs - ours) <= half_a_step).all()
        ]
        assert near, node.get_friendly_name()
        expected.pop(near[0])
        assert source(node, 0).get_type_name() == "FakeQuantize", "what goes in is rounded too"
        assert source(node, 0).get_attributes()["levels"] == 256
    assert not expected


def test_attention_and_what_lies_between_layers_is_float(transformers, tmp_path):
    export = tower_export(transformers, "image")
    model = written(export, tmp_path)
    weighted = {node.get_friendly_name() for node, *_ in layers_of(model)}
    rounded = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(rounded) == len(weighted)
    for node in rounded:
        users = [user.get_node().get_friendly_name() for user in node.output(0).get_target_inputs()]
        assert set(users) <= weighted, "only what goes into layers"
    attention = [node for node in model.get_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    assert len(attention) == len(export.encoder.layers)
    assert all(node.get_element_type() == ov.Type.f32 for node in attention)


def test_layers_of_the_fallback_are_float(convolutional, tmp_path):
    layers = ("stem.1.conv", "stages.1.blocks.0.attention.qkv", "head.project")
    export = tower_export(convolutional, "image", layers=layers)
    found = layers_of(written(export, tmp_path))
    modules = dict(weighted_layers(export.encoder))
    assert len(found) == len(modules)
    kept = [weight for _, weight, scales in found if scales is None]
    assert len(kept) == len(layers) + len(squeezes(export))
    for name in layers:
        weight = modules[name].weight.detach().numpy()
        assert any(weight.tobytes() == ours.tobytes() for ours in kept), name


def test_ranges_are_those_of_the_calibration_data(convolutional, tmp_path):
    """The first layer's, which takes the pixels themselves."""
    export = tower_export(convolutional, "image")
    export = attrs.evolve(export, calibration=2 * export.calibration)
    model = written(export, tmp_path)
    (pixels,) = model.inputs[0].get_target_inputs()
    rounded = pixels.get_node()
    assert rounded.get_type_name() == "FakeQuantize"
    least, most = (float(source(rounded, index).get_data().item()) for index in (1, 2))
    step = (most - least) / 255
    assert least == pytest.approx(float(export.calibration.min()), abs=step)
    assert most == pytest.approx(float(export.calibration.max()), abs=step)


def test_tables_that_are_looked_up_are_float16(convolutional, tmp_path):
    export = tower_export(convolutional, "text")
    model = written(export, tmp_path)
    gathers = [node for node in model.get_ops() if node.get_type_name() == "Gather"]
    (table,) = [source(node, 0) for node in gathers if source(node, 0).get_type_name() == "Constant"]
    assert table.get_element_type() == ov.Type.f16
    assert np.array_equal(table.get_data(), export.encoder.token_embedding.weight.detach().half().numpy())


@pytest.mark.slow
def test_the_processor_computes_in_int8(transformers, tmp_path):
    core = ov.Core()
    if "INT8" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO has no int8 on this processor")
    written(tower_export(transformers, "image"), tmp_path)
    compiled = core.compile_model(tmp_path / "tower.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    computed = {}
    for node in compiled.get_runtime_model().get_ops():
        notes = node.get_rt_info()
        computed.setdefault(notes["layerType"].astype(str), set()).add(notes["runtimePrecision"].astype(str))
    assert computed["Convolution"] | computed["FullyConnected"] <= {"u8", "i8"}
    assert computed["MVN"] == {"f32"}


@pytest.mark.parametrize(
    "options", [{}, {"tower": "image", "dynamic_batch": True, "preprocess": "uint8", "normalize": False}]
)
def test_embeddings_are_near_the_models(transformers, tmp_path, options):
    spec = ExportSpec(out=tmp_path / "out", target="openvino", precision="int8", **options)
    folder = export_model(transformers, spec, samples=few_samples())
    assert {(tower.compute, tower.float32) for tower in read_contract(folder).towers} == {("int8", ())}
    report = verify_export(folder)
    assert report == read_report(folder)
    assert report.passed, report.failures
    assert all(tower.cosine_minimum < 1 - 1e-6 for tower in report.towers), "int8 is not the same as float32"


# What is connected to is a failure, and so is the package that would connect; neither must be needed.
_OFFLINE = """
import socket, sys
from pathlib import Path

def refuse(self, address):
    raise SystemExit(f"connects to {address}")

socket.socket.connect = refuse
from tests.export.models import TRANSFORMERS, seeing
from tests.export.test_openvino_int8 import tower_export, written

folder = Path(sys.argv[1])
written(tower_export(seeing(TRANSFORMERS), "text"), folder)
sys.exit("openvino_telemetry was imported" if "openvino_telemetry" in sys.modules else 0)
"""


@pytest.mark.slow
def test_nothing_is_sent_over_the_network(tmp_path):
    command = [sys.executable, "-c", _OFFLINE, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_nothing_is_logged_and_loggers_stay_as_they_were(transformers, tmp_path, capfd):
    logger = logging.getLogger()
    before = (logger.level, list(logger.handlers), list(logger.filters), logging.getLoggerClass())
    export = tower_export(transformers, "text")
    capfd.readouterr()
    written(export, tmp_path)
    assert (logger.level, list(logger.handlers), list(logger.filters), logging.getLoggerClass()) == before
    assert capfd.readouterr() == ("", "")

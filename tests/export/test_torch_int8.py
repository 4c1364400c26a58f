"""Static int8 in exported programs: what is stored in it, what stays float, and who can load it."""

import re
import subprocess
import sys
from functools import partial

import attrs
import pytest
import torch

from mobileclip.export import ExportSpec, export_model, read_contract, read_report, verify_export
from mobileclip.export.targets.torch.int8 import quantized_program
from mobileclip.extras import install
from mobileclip.inference.optimization import weighted_layers
from tests.export.models import TRANSFORMERS, few_samples, int8_export, seeing

QUANTIZED = torch.ops.quantized_decomposed
CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


@pytest.fixture(scope="module")
def int8(transformers, tmp_path_factory):
    spec = ExportSpec(out=tmp_path_factory.mktemp("torch") / "int8", target="torch", precision="int8")
    return export_model(transformers, spec, samples=few_samples())


tower_export = partial(int8_export, target="torch", every=12)


def layers_of(program):
    """The convolutions and linear layers: (operation, its weight, scales of that, or None where it is float)."""
    stored = {**program.state_dict, **program.constants}
    targets = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    targets |= program.graph_signature.inputs_to_lifted_tensor_constants

    def tensor(node):
        return stored[targets[node.name]]

    found = []
    for node in program.graph.nodes:
        if node.target in CONVOLUTIONS:
            weight = node.args[1]
            if weight.target == QUANTIZED.dequantize_per_channel.default:
                assert not tensor(weight.args[2]).any(), "weights have no zero point"
                found.append((node, tensor(weight.args[0]), tensor(weight.args[1])))
            else:
                found.append((node, tensor(weight), None))
    return found


@pytest.mark.parametrize(("architecture", "tower"), [("convolutional", "image"), ("transformers", "text")])
def test_every_weight_is_int8_with_a_scale_for_each_output_channel(architecture, tower, request):
    export = tower_export(request.getfixturevalue(architecture), tower)
    found = layers_of(quantized_program(export))
    expected = weighted_layers(export.encoder)
    assert len(found) == len(expected)
    unused = [layer.weight.detach().flatten(1) for _, layer in expected]
    for node, weight, scales in found:
        assert weight.dtype == torch.int8
        assert weight.int().abs().max() <= 64
        assert scales.shape == weight.shape[:1]
        ours = weight.flatten(1) * scales[:, None]
        # Each is the weight of one of the model's layers, to half a step of its channel.
        near = [
            row
            for row, theirs in enumerate(unused)
            if theirs.shape == ours.shape and bool(((theirs - ours).abs() <= 0.501 * scales[:, None]).all())
        ]
        assert near, node.name
        unused.pop(near[0])
        assert node.args[0].target == QUANTIZED.dequantize_per_tensor.default, "what goes in is rounded too"
    assert not unused


def test_only_what_goes_into_layers_is_rounded(convolutional):
    program = quantized_program(tower_export(convolutional, "image"))
    rounded = [node for node in program.graph.nodes if node.target == QUANTIZED.dequantize_per_tensor.default]
    assert rounded
    assert {user.target for node in rounded for user in node.users} <= set(CONVOLUTIONS)


def test_layers_of_the_fallback_are_float(convolutional):
    layers = ("stem.1.conv", "stages.1.blocks.0.attention.qkv", "head.project")
    export = tower_export(convolutional, "image", layers=layers)
    modules = dict(weighted_layers(export.encoder))
    found = layers_of(quantized_program(export))
    assert len(found) == len(modules)
    kept = [weight for _, weight, scales in found if scales is None]
    assert len(kept) == 3
    for name in layers:
        assert any(torch.equal(weight, modules[name].weight) for weight in kept), name


def test_ranges_are_those_of_the_calibration_data(transformers):
    """The first thing that is rounded is the pixels: their range is known beforehand."""
    export = tower_export(transformers, "image")
    export = attrs.evolve(export, calibration=3 * export.calibration)
    nodes = quantized_program(export).graph.nodes
    first = next(node for node in nodes if node.target == QUANTIZED.quantize_per_tensor.default)
    _, scale, zero, *limits, dtype = first.args
    assert (limits, dtype) == ([0, 255], torch.uint8)
    least, most = float(export.calibration.min()), float(export.calibration.max())
    assert scale == pytest.approx((most - least) / 255, rel=1e-4)
    assert zero == pytest.approx(-least / scale, abs=0.51)


def test_tables_that_are_looked_up_are_float16(convolutional):
    export = tower_export(convolutional, "text")
    tables = [tensor for tensor in quantized_program(export).state_dict.values() if tensor.dtype == torch.float16]
    (table,) = tables
    assert torch.equal(table, export.encoder.token_embedding.weight.half())
    assert export.encoder.token_embedding.weight.dtype == torch.float32, "the model stays as it is"


@torch.no_grad()
def test_any_batch_with_preprocessing_inside(transformers):
    export = tower_export(transformers, "image", dynamic_batch=True, preprocess="uint8", normalize=False)
    run, inputs = quantized_program(export).module(), export.calibration
    expected = export.graph(torch.float32)(inputs)
    together = run(inputs)
    assert torch.nn.functional.cosine_similarity(together, expected).min() > 0.98
    torch.testing.assert_close(torch.cat([run(row[None]) for row in inputs]), together, rtol=1e-3, atol=1e-3)


def test_embeddings_are_near_the_models(int8):
    assert {(tower.compute, tower.float32) for tower in read_contract(int8).towers} == {("int8", ())}
    report = verify_export(int8)
    assert report == read_report(int8)
    assert report.passed, report.failures
    assert all(tower.cosine_minimum < 1 - 1e-6 for tower in report.towers), "int8 is not the same as float32"


def test_files_load_without_what_wrote_them(int8, tmp_path):
    """PyTorch alone: its own operations that round must be imported first, and that is all."""
    code = f"""
import sys
sys.modules["torchao"] = sys.modules["mobileclip"] = None
import torch
import torch.ao.quantization.fx._decomposed
module = torch.export.load({str(int8 / "text.pt2")!r}).module()
print(tuple(module(torch.zeros(1, 12, dtype=torch.int64)).shape))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "(1, 12)\n"


@pytest.mark.slow
def test_verify_needs_no_torchao(int8, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert verify_export(int8) == read_report(int8)


def test_a_missing_extra_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    spec = ExportSpec(out=tmp_path / "out", target="torch", precision="int8", tower="text")
    with pytest.raises(ImportError, match=re.escape(f"needs torchao: {install('int8')}")):
        export_model(seeing(TRANSFORMERS), spec)
    assert not list(tmp_path.iterdir())

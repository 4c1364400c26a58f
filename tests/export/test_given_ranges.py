"""Exports of quantised models: int8 with exactly the ranges that the model carries, in every target that has int8."""

import copy
import importlib

import attrs
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.encoders import save_model
from mobileclip.export import (
    ExportSpec,
    bundled_samples,
    export_model,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from mobileclip.export.int8 import EVERY_OUTPUT, graph_in_int8
from mobileclip.inference import weighted_layers
from mobileclip.inference.quantization import Int8Form, observed_ranges, ranges_of_form, rounded, with_rounded_weights
from mobileclip.reparam import with_children
from tests.errors import fails
from tests.export.litert import converter
from tests.export.models import CONVOLUTIONAL, PIXELS, TOKENS, few_samples, one_tower, pixels, seeing
from tests.export.stored import STORED, coreml_operations
from tests.export.test_targets import in_turn, written

pytestmark = pytest.mark.usefixtures("one_thread")
# Which compute linear layers in int8 only where their outputs are int8 too.
OF_EVERY_OUTPUT = ("executorch", "litert")


@pytest.fixture(scope="module")
def inputs():
    return {"image": pixels(PIXELS), "text": Tokenizer(TOKENS)(bundled_samples().captions)}


@pytest.fixture(scope="module")
def quantised(inputs):
    """A model with weights on their grid that carries ranges: of the outputs of convolutions, and of all."""
    model = reparameterize(seeing(CONVOLUTIONAL)).requires_grad_(requires_grad=False)

    def tower(name, outputs):
        found = getattr(model, f"{name}_encoder")
        ranges = observed_ranges(found, lambda: [inputs[name]], outputs=outputs)
        return with_rounded_weights(found, rounded(found, ranges))

    def with_outputs(*outputs):
        return with_children(model, {f"{name}_encoder": tower(name, outputs) for name in inputs})

    return {False: with_outputs(nn.Conv2d), True: with_outputs(nn.Conv2d, nn.Linear)}


def export_of(quantised, target, tower):
    options = {"converter": converter()} if target == "litert" else {}
    export = one_tower(quantised[target in OF_EVERY_OUTPUT], tower, target=target, **options)
    # Nothing is found where everything is given.
    return attrs.evolve(export, calibration=torch.empty(0))


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("target", in_turn("onnx", "openvino", "torch", slow=("executorch", "litert")))
def test_embeddings_are_those_of_the_rounded_tower(target, tower, quantised, inputs, tmp_path):
    """To the noise of rounding: a value between two steps goes to either, by the last digit of what it was made of.

    Some of a small tower's 12 numbers turn by that; what int8 itself turns is more than four times as much.
    """
    importlib.import_module({"litert": "ai_edge_litert"}.get(target, "torch"))
    if target == "litert" and converter() is None:
        pytest.skip("no LiteRT converter: make litert")
    export = export_of(quantised, target, tower)
    path, file = written(export, tmp_path)
    assert (file.compute, file.ranges) == ("int8", "model")
    encoder = copy.deepcopy(getattr(quantised[target in OF_EVERY_OUTPUT], f"{tower}_encoder"))
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            module.half().float()  # as the file holds tables
    with torch.no_grad():
        plain, expected = encoder(inputs[tower]), F.normalize(rounded(encoder, encoder.ranges)(inputs[tower]))
    run = targets[target].open(path, file)
    own = inputs[tower].to(getattr(torch, file.input_dtype))
    given = torch.cat([run(row[None])[0] for row in own])
    noise, of_int8 = (1 - F.cosine_similarity(one, expected) for one in (given, plain))
    assert noise.max() < 1e-3
    assert 4 * noise.mean() < of_int8.mean()


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("target", in_turn("onnx", "torch", slow=("openvino", "coreml")))
def test_a_file_holds_the_steps_of_the_model(target, tower, quantised, tmp_path):
    export = export_of(quantised, target, tower)
    path, _ = written(export, tmp_path)
    ranges, stored = ranges_of_form(export.encoder), STORED[target](path)
    steps = {name: ranges[f"{name}.weight"].numpy() for name, _ in weighted_layers(export.encoder)}
    for layer in stored.layers:
        assert layer.is_fed_rounded
        same = [name for name, one in steps.items() if is_close(layer.scales, one)]
        assert same, "the scales are of a layer"
        del steps[same[0]]
    assert not steps
    first = next(name for name, _ in weighted_layers(export.encoder))
    step, zero = ranges[f"{first}.input"].tolist()
    assert stored.first_range == pytest.approx((-zero * step, (255 - zero) * step), rel=1e-3)
    if target == "coreml":
        # It cannot be run here.
        known = [float(values[0]) for name, values in ranges.items() if not name.endswith("weight")]
        scales = [float(one.scale.val) for one in coreml_operations(path, "quantize")]
        assert len(scales) > len(weighted_layers(export.encoder))
        assert not [scale for scale in scales if not np.isclose(scale, known, rtol=1e-3, atol=2**-24).any()]


def is_close(scales, steps):
    # Core ML has float16 of them.
    return scales is not None and scales.shape == steps.shape and np.allclose(scales, steps, rtol=1e-3, atol=1e-7)


def test_a_file_of_a_quantised_model_is_exported_with_its_ranges(quantised, tmp_path):
    model = tmp_path / "int8.safetensors"
    save_model(quantised[False], model)
    spec = ExportSpec(output=tmp_path / "out", precision="int8")
    folder = export_model(model, spec, samples=few_samples(), show_progress=False)
    contract = read_contract(folder)
    assert [(file.ranges, file.float32) for file in contract.towers] == [("model", ()), ("model", ())]
    assert "`image.onnx` and `text.onnx`: int8 with the ranges that the model carries" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    report = verify_export(folder, show_progress=False)
    assert report == read_report(folder)
    assert report.passed, report.failures


def test_what_lacks_ranges_stays_in_float32_and_a_tower_without_any_finds_its_own(quantised, tmp_path):
    image = quantised[False].image_encoder
    kept = "stem.1.conv"
    part = with_children(image, {})
    part.ranges = {name: values for name, values in image.ranges.items() if name.rpartition(".")[0] != kept}
    text = with_children(quantised[False].text_encoder, {})
    del text.ranges
    model = with_children(quantised[False], {"image_encoder": part, "text_encoder": text})
    spec = ExportSpec(output=tmp_path / "out", target="torch", precision="int8")
    folder = export_model(model, spec, samples=few_samples(), show_progress=False)
    own, other = read_contract(folder).towers
    assert (own.ranges, own.float32) == ("model", (kept,))
    assert other.ranges == "calibration"


def test_outputs_that_a_runtime_needs_are_found_where_the_model_has_no_ranges_of_them(quantised):
    export = one_tower(quantised[False], "text", target="executorch", every=12)
    program = export.program_of(graph_in_int8(export, Int8Form(), outputs=EVERY_OUTPUT))
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    held = [node.args[1:3] for node in program.graph.nodes if node.target is quantize]
    assert len(held) == 2 * len(weighted_layers(export.encoder))
    given = [tuple(values.tolist()) for name, values in ranges_of_form(export.encoder).items() if len(values) == 2]
    assert len(given) < len(held)
    assert set(given) <= set(held)


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ({"layers.9.conv.weight": torch.ones(8)}, "inference.ranges-layers-form-tower", "layers.9.conv"),
        ({"head.project.weight": torch.ones(7)}, "inference.outputs-ranges-give-ranges", "head.project"),
        ({"head.project.input": None}, "export.model-ranges-weights-none", "head.project"),
    ],
)
def test_ranges_of_another_model_are_refused_by_name(changed, code, told, quantised, tmp_path):
    image = with_children(quantised[False].image_encoder, {})
    image.ranges = {name: values for name, values in {**image.ranges, **changed}.items() if values is not None}
    spec = ExportSpec(output=tmp_path / "out", precision="int8", tower="image")
    with fails(code, told):
        export_model(image, spec, samples=few_samples(), show_progress=False)
    assert not (tmp_path / "out").exists()

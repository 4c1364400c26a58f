"""Static int8 in ONNX: what is stored in it, what is not, and where the ranges come from."""

import logging
from functools import partial
from io import BytesIO

import attrs
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mobileclip.cli import main
from mobileclip.data import Tokenizer
from mobileclip.encoders import save_model
from mobileclip.evaluation import BenchmarkSample, write_benchmark
from mobileclip.export import (
    ExportSpec,
    bundled_samples,
    export_model,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from mobileclip.inference.optimization import weighted_layers
from tests.export.models import PIXELS, SHALLOW, TOKENS, TRANSFORMERS, few_samples, int8_export, pixels, seeing

tower_export = partial(int8_export, target="onnx", every=12)


def written(export, folder):
    """The file that the target writes of a tower, and the tensors and operations in it by name of what they give."""
    folder.mkdir(exist_ok=True)
    assert targets["onnx"].export(export, folder / "tower.onnx") == "int8"
    graph = onnx.load(folder / "tower.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return graph, stored, {name: node for node in graph.node for name in node.output}


def layers_of(graph, stored, giver):
    """The convolutions and linear layers of a file: (operation, weight, scales of it, or None where it is float)."""
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source = giver.get(node.input[1])
        if node.input[1] in stored:
            found.append((node, stored[node.input[1]], None))
        elif source.op_type == "DequantizeLinear" and source.input[0] in stored:
            assert not stored[source.input[2]].any(), "weights have no zero point"
            found.append((node, stored[source.input[0]], stored[source.input[1]]))
    return found


def channels_first(node, weight):
    transposed = {attribute.name: attribute.i for attribute in node.attribute}.get("transB", 0)
    return weight if node.op_type == "Conv" or transposed else weight.T


@pytest.mark.parametrize(("architecture", "tower"), [("convolutional", "image"), ("transformers", "text")])
def test_every_weight_is_int8_with_a_scale_for_each_output_channel(architecture, tower, request, tmp_path):
    export = tower_export(request.getfixturevalue(architecture), tower)
    graph, stored, giver = written(export, tmp_path)
    found = layers_of(graph, stored, giver)
    expected = weighted_layers(export.encoder)
    assert len(found) == len(expected)
    unused = [module.weight.detach().flatten(1).numpy() for _, module in expected]
    for node, stored_weight, scales in found:
        assert stored_weight.dtype == np.int8
        assert abs(stored_weight.astype(int)).max() <= 64
        weight = channels_first(node, stored_weight)
        assert scales.shape == weight.shape[:1]
        ours = weight.reshape(len(weight), -1) * scales[:, None]
        # Each is the weight of one of the model's layers, to half a step of its channel.
        near = [
            row
            for row, theirs in enumerate(unused)
            if theirs.shape == ours.shape and (abs(theirs - ours) <= 0.501 * scales[:, None]).all()
        ]
        assert near, node.name
        unused.pop(near[0])
        assert giver[node.input[0]].op_type == "DequantizeLinear", "what goes in is rounded too"
    assert not unused


def test_attention_and_what_lies_between_layers_is_float(transformers, tmp_path):
    export = tower_export(transformers, "image")
    graph, stored, giver = written(export, tmp_path)
    weighted = [node for node, _, _ in layers_of(graph, stored, giver)]
    products = [node for node in graph.node if node.op_type == "MatMul" and node not in weighted]
    assert len(products) == 2 * len(export.encoder.layers)
    float_operations = [node for node in graph.node if node.op_type in ("Softmax", "LayerNormalization", "Gelu")]
    assert {node.op_type for node in float_operations} == {"Softmax", "LayerNormalization", "Gelu"}
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    inputs = {giver[giver[node.input[0]].input[0]].input[0] for node in weighted}
    outputs = {node.output[0] for node in weighted if node.op_type == "Conv"}
    assert rounded == inputs | outputs, "only what goes into layers, and what comes out of convolutions"


def test_layers_of_the_fallback_are_float(convolutional, tmp_path):
    layers = ("stem.1.conv", "stages.1.blocks.0.attention.qkv", "head.project")
    export = tower_export(convolutional, "image", layers=layers)
    graph, stored, giver = written(export, tmp_path)
    found = layers_of(graph, stored, giver)
    kept = [channels_first(node, weight) for node, weight, scales in found if scales is None]
    modules = dict(weighted_layers(export.encoder))
    assert len(kept) == 3
    for name in layers:
        weight = modules[name].weight.detach().numpy()
        assert any(weight.shape == ours.shape and np.array_equal(weight, ours) for ours in kept), name
    assert len(found) == len(modules)


def test_ranges_are_those_of_the_calibration_data(transformers, tmp_path):
    """The first thing that is rounded is the pixels: their range is known beforehand."""
    export = tower_export(transformers, "image")
    export = attrs.evolve(export, calibration=3 * export.calibration)
    graph, stored, _ = written(export, tmp_path)
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "pixels")
    scale, zero = stored[first.input[1]], stored[first.input[2]]
    assert zero.dtype == np.uint8
    least, most = float(export.calibration.min()), float(export.calibration.max())
    assert scale == pytest.approx((most - least) / 255, rel=1e-4)
    assert zero == pytest.approx(-least / scale, abs=0.51)


@pytest.mark.slow
def test_tables_that_are_looked_up_are_float16(convolutional, tmp_path):
    export = tower_export(convolutional, "text")
    graph, stored, _ = written(export, tmp_path)
    (table,) = [stored[node.input[0]] for node in graph.node if node.op_type == "Gather" and node.input[0] in stored]
    assert table.dtype == np.float16
    assert np.array_equal(table, export.encoder.token_embedding.weight.detach().half().numpy())


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"tower": "image", "dynamic_batch": True, "preprocess": "uint8", "normalize": False},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_embeddings_are_near_the_models(transformers, tmp_path, options):
    spec = ExportSpec(out=tmp_path / "out", precision="int8", **options)
    folder = export_model(transformers, spec, samples=few_samples())
    assert {(tower.compute, tower.float32) for tower in read_contract(folder).towers} == {("int8", ())}
    report = verify_export(folder)
    assert report == read_report(folder)
    assert report.passed, report.failures
    assert all(tower.cosine_minimum < 1 - 1e-6 for tower in report.towers), "int8 is not the same as float32"


@pytest.mark.slow
def test_nothing_is_logged_and_loggers_stay_as_they_were(transformers, tmp_path, capfd, caplog):
    logger = logging.getLogger()
    before = (logger.level, list(logger.handlers), list(logger.filters))
    with caplog.at_level(logging.INFO):
        export = tower_export(transformers, "text")
        capfd.readouterr()
        caplog.clear()
        written(export, tmp_path)
    assert not [record for record in caplog.records if "onnxruntime" in record.pathname]
    assert (logger.level, list(logger.handlers), list(logger.filters)) == before
    assert capfd.readouterr() == ("", "")


def outlying(spec, *, norms):
    """A model with large values that nothing uses behind some norms: rounded with them, the others are zero."""
    model = seeing(spec)
    for tower in (model.image_encoder, model.text_encoder):
        layer = tower.layers[0]
        behind = {"attention_norm": layer.attention.qkv, "ffn_norm": layer.ffn.fc1, "norm": tower.project}
        with torch.no_grad():
            for name in norms:
                (tower if name == "norm" else layer).get_submodule(name).weight[0] = 1e4
                behind[name].weight[:, 0] = 0
    return model


@pytest.mark.slow
def test_layers_that_cannot_be_rounded_stay_float(tmp_path):
    spec = ExportSpec(out=tmp_path / "out", precision="int8", tower="text")
    folder = export_model(outlying(TRANSFORMERS, norms=["norm"]), spec)
    (text,) = read_contract(folder).towers
    assert "project" in text.float32
    assert len(text.float32) == 2, "an eighth of the ten layers"
    assert verify_export(folder).towers[0].cosine_minimum > 0.98


def differences(cosines):
    """Of pictures' cosines with captions: between two captions of a picture, and between two pictures of a caption.

    Both as they count for two pictures and two captions: `(pictures, pictures, captions, captions)`, of four queries.
    """
    by_picture, by_caption = cosines[:, :, None] - cosines[:, None], cosines[:, None] - cosines
    shape = (*by_caption.shape[:2], *by_picture.shape[1:])
    four = (by_picture[:, None], by_picture[None], by_caption[..., None], by_caption[:, :, None])
    return torch.stack([one.expand(shape) for one in four])


@pytest.mark.slow
def test_towers_that_pass_alone_and_not_together_are_written_again(tmp_path):
    """On two pictures and captions whose order the rounding of one tower does not turn, and that of both does."""
    model, everything, spec = seeing(SHALLOW), bundled_samples(), ExportSpec(out=tmp_path / "plain", precision="int8")
    plain = export_model(model, spec, samples=few_samples(2), calibration=everything)
    towers, embeddings = read_contract(plain).towers, {}
    assert [(tower.tower, tower.float32) for tower in towers] == [("image", ()), ("text", ())]
    for tower, inputs in zip(towers, (pixels(PIXELS), Tokenizer(TOKENS)(everything.captions)), strict=True):
        run = targets["onnx"].open(plain / tower.file, tower)
        rounded = torch.cat([run(row[None])[0] for row in inputs])
        with torch.no_grad():
            embeddings[tower.tower] = (getattr(model, f"encode_{tower.tower}")(inputs, normalize=True), rounded)
    expected, text_alone, image_alone, together = (
        differences(image @ text.T) for image in embeddings["image"] for text in embeddings["text"]
    )
    right_alone = (expected.sign() == text_alone.sign()) & (expected.sign() == image_alone.sign())
    turned = right_alone.all(0) & (expected.sign() != together.sign()).any(0)
    clearest = (expected.abs().amin(0) * turned).argmax()
    *rows, first, second = (int(index) for index in torch.unravel_index(clearest, turned.shape))
    samples = attrs.evolve(
        everything,
        image_names=tuple(everything.image_names[row] for row in rows),
        images=tuple(everything.images[row] for row in rows),
        captions=(everything.captions[first], everything.captions[second]),
    )
    spec = ExportSpec(out=tmp_path / "out", precision="int8")
    folder = export_model(model, spec, samples=samples, calibration=everything)
    assert any(tower.float32 for tower in read_contract(folder).towers)
    assert read_report(folder).passed


@pytest.mark.slow
def test_an_export_that_cannot_pass_is_status_1_and_is_kept(tmp_path, capsys):
    """Too many layers cannot be rounded; and the ranges come from the data set that the command names."""
    model = outlying(TRANSFORMERS, norms=["attention_norm", "ffn_norm", "norm"])
    save_model(model, tmp_path / "model.safetensors")
    buffer = BytesIO()
    Image.new("RGB", (80, 80)).save(buffer, "PNG")
    black = [BenchmarkSample(key=str(row), image=buffer.getvalue(), captions=(f"black {row}",)) for row in range(2)]
    write_benchmark(tmp_path / "wds_black_test", black)
    out = tmp_path / "out"
    command = ["export", tmp_path / "model.safetensors", "--precision", "int8", "--tower", "image", "--out", out]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in [*command, "--calibration", tmp_path / "wds_black_test"]])
    assert stop.value.code == 1
    assert "image cosine, minimum" in capsys.readouterr().err
    assert read_report(out).data == "bundled", "measured on what it would be measured on without"
    stored = {tensor.name: tensor for tensor in onnx.load(out / "image.onnx").graph.initializer}
    scale = float(onnx.numpy_helper.to_array(stored["pixels_scale"]))
    assert scale == pytest.approx(max(mean / std for mean, std in zip(PIXELS.mean, PIXELS.std, strict=True)) / 255)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(out)])
    assert stop.value.code == 1

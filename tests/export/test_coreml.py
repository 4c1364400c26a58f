"""Core ML packages: what is in them, and, where this is no Mac, what our reading of their programs gives."""

import re
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract, read_report, verify_export
from mobileclip.export.targets import CoreMLTarget
from mobileclip.export.targets.coreml.convert import LARGEST_BATCH
from mobileclip.export.targets.coreml.mil import quiet, read_program
from mobileclip.export.towers import TowerExport, calibration_inputs
from mobileclip.export.verification import Fallback
from mobileclip.extras import install
from mobileclip.inference.forms import with_one_token
from tests.errors import fails
from tests.export.models import PIXELS, TOKENS, TRANSFORMERS as CAUSAL, few_samples, overflowing, pixels, unusual
from tests.export.test_verify import sign

NOT_HERE = "Core ML itself runs on Macs alone"


@pytest.fixture(scope="module")
def plain(convolutional, tmp_path_factory):
    """Both towers with everything as it is by default."""
    return export_model(convolutional, ExportSpec(out=tmp_path_factory.mktemp("coreml") / "plain", target="coreml"))


@pytest.fixture(scope="module")
def half(transformers, tmp_path_factory):
    """Both towers with nothing as it is by default."""
    out = tmp_path_factory.mktemp("coreml") / "half"
    return export_model(transformers, unusual(out, target="coreml", preprocess="float32"), samples=few_samples())


@pytest.fixture(scope="module")
def picture(convolutional, tmp_path_factory):
    """The image tower, taking pictures."""
    spec = ExportSpec(
        out=tmp_path_factory.mktemp("coreml") / "picture",
        target="coreml",
        tower="image",
        precision="float16",
        preprocess="uint8",
    )
    return export_model(convolutional, spec, samples=few_samples())


def description(package):
    """Return what the package says of itself. The import takes five seconds, of every process that collects tests."""
    with quiet():
        from coremltools.models.utils import load_spec
    return load_spec(str(package))


def eight_bit(model, tower, path, *, fallback=None, calibration=None):
    """The program of a tower in int8, without what `export_model` does about failing gates."""
    folded = reparameterize(model)
    encoder = folded.image_encoder if tower == "image" else folded.text_encoder
    export = TowerExport(
        tower=tower,
        encoder=with_one_token(encoder),
        spec=ExportSpec(out=path, target="coreml", precision="int8"),
        calibration=calibration if calibration is not None else calibration_of(encoder),
        text_dtype="int32",
        fallback=fallback or Fallback(),
    )
    assert CoreMLTarget().export(export, path) == "int8"
    return read_program(path)


def calibration_of(encoder):
    inputs = calibration_inputs(encoder, bundled_samples(), "host")
    return inputs if inputs.is_floating_point() else inputs.int()


@pytest.fixture(scope="module")
def int8_text(convolutional, tmp_path_factory):
    return eight_bit(convolutional, "text", tmp_path_factory.mktemp("coreml") / "text.mlpackage")


def kinds(program):
    return Counter(operation.op_type for operation in program.function.operations)


def operations(program, kind):
    return [operation for operation in program.function.operations if operation.op_type == kind]


def types(program, kind):
    """The types of what operations of a kind give."""
    return {operation.outputs[0].dtype.__name__ for operation in operations(program, kind)}


def run(program, inputs):
    name = program.description.input[0].name
    return torch.cat([program.run({name: row[None]})[0] for row in inputs])


@torch.no_grad()
def test_gives_the_models_embeddings(plain, convolutional):
    images, texts = pixels(PIXELS)[:3], Tokenizer(TOKENS)(["a cat", "two dogs on a beach"])
    ours = run(read_program(plain / "image.mlpackage"), images)
    torch.testing.assert_close(ours, convolutional.encode_image(images, normalize=True), rtol=1e-4, atol=1e-5)
    ours = run(read_program(plain / "text.mlpackage"), texts.int())
    torch.testing.assert_close(ours, convolutional.encode_text(texts, normalize=True), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("export", ["plain", "half", "picture"])
def test_measures_again_what_the_report_says(export, request):
    folder = request.getfixturevalue(export)
    report = verify_export(folder)
    assert report.passed, report.failures
    assert report == read_report(folder)
    assert report.runtime == ("Core ML" if sys.platform == "darwin" else "mil reference")


@torch.no_grad()
@pytest.mark.skipif(sys.platform != "darwin", reason=NOT_HERE)
def test_core_ml_gives_what_our_reading_gives(picture):
    tower = read_contract(picture).towers[0]
    inputs = load_file(picture / "golden.safetensors")["pixels"]
    run_core_ml = CoreMLTarget().open(picture / tower.file, tower)
    ours = run(read_program(picture / tower.file), inputs.float())
    theirs = torch.cat([run_core_ml(row[None])[0] for row in inputs])
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)


def test_contract_says_what_goes_in(plain, half, picture):
    image, text = read_contract(plain).towers
    assert (image.file, image.input_dtype, image.input_shape) == ("image.mlpackage", "float32", (1, 3, 64, 64))
    assert (text.input_dtype, text.input_shape, text.compute) == ("int32", (1, 12), "float32")
    image, text = read_contract(half).towers
    assert (image.input_shape, text.input_shape, image.compute) == ((None, 3, 64, 64), (None, 12), "float16")
    (image,) = read_contract(picture).towers
    assert (image.input_dtype, image.input_shape) == ("uint8", (1, 3, 64, 64))
    assert load_file(plain / "golden.safetensors")["tokens"].dtype == torch.int32
    assert load_file(picture / "golden.safetensors")["pixels"].dtype == torch.uint8


def test_files_say_what_goes_in(half, picture):
    spec = description(half / "text.mlpackage")
    bounds = spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges[0]
    assert (bounds.lowerBound, bounds.upperBound) == (1, LARGEST_BATCH)
    assert list(spec.description.input[0].type.multiArrayType.shape) == [1, 12]
    # iOS 17 and macOS 14.
    assert spec.specificationVersion == 8
    image_type = description(picture / "image.mlpackage").description.input[0].type.imageType
    assert (image_type.width, image_type.height) == (64, 64)
    assert {path.name for path in picture.glob("image.mlpackage/*")} == {"Manifest.json", "Data"}


def test_batches_of_any_size(half):
    program = read_program(half / "text.mlpackage")
    tokens = Tokenizer(TOKENS)(["a cat", "two dogs on a beach", ""]).int()
    (together,) = program.run({"tokens": tokens})
    torch.testing.assert_close(together, run(program, tokens), rtol=1e-2, atol=1e-2)


def test_every_weight_is_in_the_file(plain, half, convolutional, transformers):
    for folder, model, tolerance in ((plain, convolutional, 0), (half, transformers, 2**-11)):
        folded = reparameterize(model)
        for tower, encoder in (("image", folded.image_encoder), ("text", folded.text_encoder)):
            constants = read_program(folder / f"{tower}.mlpackage").constants().values()
            stored = [torch.from_numpy(array.astype(np.float32)).flatten() for array in constants if array.ndim]
            for name, weight in with_one_token(encoder).named_parameters():
                # What float16 rounds to a multiple of its least number is off by half of that.
                close = [
                    torch.allclose(one, weight.flatten(), rtol=tolerance, atol=2**-25 if tolerance else 0)
                    for one in stored
                    if one.numel() == weight.numel()
                ]
                assert any(close), f"{tower}: {name}"


def test_half_precision_inside_and_float32_at_both_ends(half, picture):
    program = read_program(half / "text.mlpackage")
    assert types(program, "linear") == types(program, "layer_norm") == types(program, "softmax") == {"fp16"}
    assert types(read_program(half / "image.mlpackage"), "linear") == {"fp16"}
    program = read_program(picture / "image.mlpackage")
    assert types(program, "conv") == types(program, "gelu") == {"fp16"}
    # Scaling of pixels and lengths of embeddings.
    assert operations(program, "mul")[0].outputs[0].dtype.__name__ == "fp32"
    assert types(program, "reduce_l2_norm") == {"fp32"}


def test_layers_beyond_half_precision_stay_in_float32(tmp_path):
    spec = ExportSpec(out=tmp_path / "out", target="coreml", precision="float16", tower="text")
    folder = export_model(overflowing(CAUSAL), spec, samples=few_samples())
    report = read_report(folder)
    assert report.passed, report.failures
    (text,) = read_contract(folder).towers
    assert "project" in text.float32
    assert types(read_program(folder / "text.mlpackage"), "linear") == {"fp16", "fp32"}


@pytest.mark.slow
def test_int8_holds_every_layer_in_8_bits(int8_text, convolutional):
    encoder = reparameterize(convolutional).text_encoder
    layers = [m for m in encoder.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    found = kinds(int8_text)
    assert found["conv"] + found["linear"] == len(layers)
    assert found["constexpr_affine_dequantize"] == found["quantize"] == found["dequantize"] == len(layers)
    weights = {tuple(m.weight.shape): [] for m in layers}
    for operation in operations(int8_text, "constexpr_affine_dequantize"):
        scale, data = operation.scale.val.astype(np.float32), operation.quantized_data.val
        assert data.dtype == np.int8
        assert scale.shape == (len(data),)
        assert not np.any(operation.zero_point.val)
        along = scale.reshape(-1, *[1] * (data.ndim - 1))
        weights[data.shape].append((data * along, along))
    for layer in layers:
        weight = layer.weight.detach().numpy()
        # Half a step, and what float16 takes off the scale.
        assert any(
            np.all(abs(stored - weight) <= 0.5 * along + 1e-3 * abs(weight) + 1e-7)
            for stored, along in weights[weight.shape]
        ), layer


@pytest.mark.slow
def test_int8_leaves_what_is_no_layer(int8_text):
    for operation in operations(int8_text, "matmul"):
        assert {one.op.op_type for one in (operation.x, operation.y)}.isdisjoint(
            {"dequantize", "constexpr_affine_dequantize"}
        )
    for layer in (*operations(int8_text, "conv"), *operations(int8_text, "linear")):
        assert (layer.x.op.op_type, layer.weight.op.op_type) == ("dequantize", "constexpr_affine_dequantize")
    assert types(int8_text, "softmax") == types(int8_text, "layer_norm") == {"fp16"}
    assert types(int8_text, "reduce_l2_norm") == {"fp32"}


@pytest.mark.slow
@torch.no_grad()
def test_int8_is_near_the_model(int8_text, convolutional):
    tokens = Tokenizer(TOKENS)(bundled_samples().captions)
    ours = run(int8_text, tokens.int())
    cosines = torch.nn.functional.cosine_similarity(ours, convolutional.encode_text(tokens))
    assert 0.98 < float(cosines.min()) < 1 - 1e-6, "8 bits are near float32, and not the same"


@pytest.mark.slow
def test_int8_leaves_layers_of_the_fallback(convolutional, int8_text, tmp_path):
    kept = Fallback(name="two", layers=frozenset({"layers.0.ffn.fc1", "project"}))
    program = eight_bit(convolutional, "text", tmp_path / "text.mlpackage", fallback=kept)
    assert kinds(program)["quantize"] == kinds(int8_text)["quantize"] - 2
    assert operations(program, "linear")[-1].weight.op.op_type == "const"


@pytest.mark.slow
def test_ranges_are_those_of_the_calibration(convolutional, int8_text, tmp_path):
    tokens = calibration_of(reparameterize(convolutional).text_encoder)
    other = eight_bit(convolutional, "text", tmp_path / "text.mlpackage", calibration=tokens[:1])
    ours, theirs = ([float(op.scale.val) for op in operations(p, "quantize")] for p in (int8_text, other))
    assert ours != theirs
    assert all(narrow <= wide * 1.001 for wide, narrow in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_int8_of_pictures(transformers, tmp_path):
    spec = ExportSpec(
        out=tmp_path / "out", target="coreml", tower="image", precision="int8", preprocess="uint8", normalize=False
    )
    report = read_report(export_model(transformers, spec, samples=few_samples()))
    assert report.passed, report.failures
    (image,) = read_contract(tmp_path / "out").towers
    assert (image.compute, image.float32) == ("int8", ())


def test_what_core_ml_cannot_hold(convolutional, tmp_path):
    with fails("export.target-precision-choose-precision", "coreml", "bfloat16", "float32"):
        export_model(convolutional, ExportSpec(out=tmp_path / "out", target="coreml", precision="bfloat16"))
    spec = ExportSpec(out=tmp_path / "out", target="coreml", preprocess="uint8", dynamic_batch=True)
    with fails("export.core-ml-takes-picture"):
        export_model(convolutional, spec)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_names_its_command(plain, transformers, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(ImportError, match=re.escape(f"needs coremltools: {install('coreml')}")):
            verify_export(plain)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    with pytest.raises(ImportError, match=re.escape(install("coreml", "int8"))):
        export_model(transformers, ExportSpec(out=tmp_path / "out", target="coreml", precision="int8"))


@pytest.fixture
def copied(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "copied")


def weights_of(folder, tower="image"):
    return folder / f"{tower}.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def model_of(folder, tower="image"):
    return folder / f"{tower}.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel"


def test_tampered_and_missing_files(copied):
    content = bytearray(weights_of(copied).read_bytes())
    content[len(content) // 2] ^= 1
    weights_of(copied).write_bytes(content)
    with fails("export.file-exported-sha-256", "weight.bin"):
        verify_export(copied)
    weights_of(copied).unlink()
    with fails("export.mobileclip-json-names-export", "image.mlpackage/Data/com.apple.CoreML/weights/weight.bin"):
        verify_export(copied)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:500]),
        lambda folder: weights_of(folder).write_bytes(b""),
        lambda folder: model_of(folder).write_bytes(model_of(folder).read_bytes()[:-300]),
        lambda folder: model_of(folder).write_bytes(b"not a model"),
    ],
    ids=["cut weights", "empty weights", "cut model", "no model"],
)
def test_damaged_packages(copied, damage):
    damage(copied)
    sign(copied)
    with fails("export.read-core-ml-package"):
        verify_export(copied, trust=True)


def largest_weight(folder):
    """Where the largest weight is in the file, and the weight."""
    arrays = read_program(folder / "image.mlpackage").constants().values()
    largest = max((array for array in arrays if array.dtype == np.float32), key=lambda array: array.size)
    data = weights_of(folder).read_bytes()
    return data.index(largest.tobytes()), largest


def test_a_wrong_weight_fails_the_gates(copied):
    start, weight = largest_weight(copied)
    data = bytearray(weights_of(copied).read_bytes())
    data[start : start + weight.nbytes] = (-weight).tobytes()
    weights_of(copied).write_bytes(data)
    sign(copied)
    report = verify_export(copied, trust=True)
    assert "image cosine, minimum" in {gate.name for gate in report.gates if not gate.passed}


def test_weights_that_are_not_finite_and_other_towers_are_told_before_anything_runs(copied):
    start, _ = largest_weight(copied)
    data = bytearray(weights_of(copied).read_bytes())
    data[start : start + 4] = np.float32(np.nan).tobytes()
    weights_of(copied).write_bytes(data)
    sign(copied)
    with fails("export.weight-holds-nan-infinity"):
        verify_export(copied, trust=True)
    shutil.copyfile(model_of(copied, "text"), model_of(copied))
    shutil.copyfile(weights_of(copied, "text"), weights_of(copied))
    sign(copied)
    with fails("export.inputs-outputs-contract-says"):
        verify_export(copied, trust=True)


@pytest.mark.slow
def test_says_nothing_and_leaves_coremltools_as_it_was(transformers, tmp_path, capfd):
    with quiet():
        from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    before = _TORCH_OPS_REGISTRY.get_func("layer_norm")
    spec = ExportSpec(out=tmp_path / "out", target="coreml", tower="text", precision="float16")
    export_model(transformers, spec, samples=few_samples(), show_progress=False)
    assert _TORCH_OPS_REGISTRY.get_func("layer_norm") is before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")

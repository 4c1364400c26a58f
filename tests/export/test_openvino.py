"""OpenVINO: what its files take and give, read with the runtime itself, and how `open` asks for what was exported."""

import re
import shutil
import subprocess
import sys

import attrs
import numpy as np
import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export import (
    ExportSpec,
    bundled_samples,
    export_model,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from mobileclip.export.towers import TowerExport, calibration_inputs
from mobileclip.export.verification import fallbacks
from mobileclip.extras import install
from mobileclip.inference.forms import with_one_token
from mobileclip.inference.optimization import PROCESSOR_OPTIONS, import_quietly
from tests.errors import fails
from tests.export.models import PIXELS, TOKENS, TRANSFORMERS, overflowing, pixels, raw_pixels, unusual

ov = import_quietly("openvino")
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
NARROW = {"float16": ov.Type.f16, "bfloat16": ov.Type.bf16}


def run(path, inputs, hints=FLOAT32):
    """What OpenVINO alone gives of one batch."""
    compiled = ov.Core().compile_model(path, "CPU", hints)
    return torch.from_numpy(compiled([np.asarray(inputs)])[0].copy())


@pytest.fixture(scope="module")
def plain(convolutional, tmp_path_factory):
    """Both towers with everything as it is by default."""
    return export_model(convolutional, ExportSpec(out=tmp_path_factory.mktemp("openvino") / "plain", target="openvino"))


@pytest.fixture(scope="module")
def half(transformers, tmp_path_factory):
    """Both towers with nothing as it is by default."""
    out = tmp_path_factory.mktemp("openvino") / "half"
    return export_model(transformers, unusual(out, target="openvino"))


@torch.no_grad()
def test_embeddings_are_the_models(plain, convolutional):
    images, texts = pixels(PIXELS), Tokenizer(TOKENS)(["a cat", "two dogs on a beach"])
    ours = torch.cat([run(plain / "image.xml", image[None]) for image in images[:3]])
    torch.testing.assert_close(ours, convolutional.encode_image(images[:3], normalize=True), rtol=1e-4, atol=1e-5)
    ours = torch.cat([run(plain / "text.xml", text[None]) for text in texts])
    torch.testing.assert_close(ours, convolutional.encode_text(texts, normalize=True), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_half_precision_any_batch_and_preprocessing_inside(half, transformers):
    ours = run(half / "image.xml", raw_pixels(PIXELS)[:5])
    expected = transformers.encode_image(pixels(PIXELS)[:5])
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    assert len(run(half / "image.xml", raw_pixels(PIXELS)[:3])) == 3
    texts = Tokenizer(TOKENS)(["a cat", "two dogs on a beach", ""])
    expected = transformers.encode_text(texts)
    torch.testing.assert_close(run(half / "text.xml", texts), expected, rtol=2e-2, atol=2e-2)


def test_contract_says_what_the_files_take(plain, half):
    contract = read_contract(plain)
    assert contract.versions["openvino"].startswith(ov.__version__.partition("-")[0])
    assert {"image.bin", "image.xml", "text.bin", "text.xml"} <= set(contract.files)
    for folder in (plain, half):
        for tower in read_contract(folder).towers:
            model = ov.Core().read_model(folder / tower.file)
            (taken,), (given) = model.inputs, model.outputs
            assert taken.get_names() == {tower.input_name}
            assert taken.element_type.to_dtype() == np.dtype(tower.input_dtype)
            sides = tuple(None if side.is_dynamic else side.get_length() for side in taken.partial_shape)
            assert sides == tower.input_shape
            assert given[0].get_names() == {tower.output_name}
            assert given[0].element_type == ov.Type.f32
    assert [tower.compute for tower in read_contract(half).towers] == ["float16", "float16"]


@pytest.mark.parametrize("name", ["plain", "half"])
def test_verify_measures_it_again(name, request):
    folder = request.getfixturevalue(name)
    report = verify_export(folder)
    assert report.passed, report.failures
    assert report == read_report(folder)
    assert report.runtime == "openvino"
    # A processor that has bfloat16 computes in it, to 0.99996, unless it is asked not to.
    assert all(tower.cosine_minimum > (1 - 1e-9 if name == "plain" else 1 - 1e-5) for tower in report.towers)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_weights_and_what_to_ask_for_are_in_the_file(convolutional, tmp_path, precision):
    spec = ExportSpec(out=tmp_path / "out", target="openvino", tower="image", precision=precision)
    folder = export_model(convolutional, spec)
    (tower,) = read_contract(folder).towers
    assert tower.compute == precision
    (parity,) = read_report(folder).towers
    assert 0.9995 < parity.cosine_minimum < 1 - 1e-7, "it is near float32, and not the same"
    model = ov.Core().read_model(folder / "image.xml")
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    large = [node for node in constants if node.get_element_type().is_real() and np.prod(node.shape) > 100]
    assert large
    assert {node.get_element_type() for node in large} == {NARROW[precision]}
    hint = model.get_rt_info(["mobileclip", "INFERENCE_PRECISION_HINT"]).astype(str)
    assert hint == {"float16": "f16", "bfloat16": "bf16"}[precision]
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    (asked,) = targets["openvino"].open(folder / "image.xml", tower)(pixels(PIXELS)[:1])
    if {"float16": "FP16", "bfloat16": "BF16"}[precision] not in able:
        hint = "f32"
    # Fused by OpenVINO itself, a graph of bfloat16 is rounded to it after every operation, whatever is asked for.
    expected = run(folder / "image.xml", pixels(PIXELS)[:1], {"INFERENCE_PRECISION_HINT": hint, **PROCESSOR_OPTIONS})
    torch.testing.assert_close(asked, expected, rtol=0, atol=1e-6)


def test_layers_beyond_float16_stay_float32(tmp_path):
    encoder = reparameterize(overflowing(TRANSFORMERS)).text_encoder
    inputs = calibration_inputs(encoder, bundled_samples(), "host")
    wide, *_ = fallbacks(encoder, inputs, "float16")
    assert "project" in wide.layers
    spec = ExportSpec(out=tmp_path / "out", precision="float16")
    export = TowerExport(tower="text", encoder=with_one_token(encoder), spec=spec, calibration=inputs, fallback=wide)
    assert targets["openvino"].export(export, tmp_path / "text.xml") == "float16"
    model = ov.Core().read_model(tmp_path / "text.xml")
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert {node.get_element_type() for node in products[:-1]} == {ov.Type.f16}
    assert products[-1].get_element_type() == ov.Type.f32


def test_one_input_at_a_time_unless_asked(plain):
    with pytest.raises(RuntimeError, match="shape"):
        run(plain / "image.xml", pixels(PIXELS)[:2])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (
            lambda folder: (folder / "image.bin").write_bytes((folder / "image.bin").read_bytes()[:1000]),
            ("export.file-exported-sha-256", "image.bin"),
        ),
        (lambda folder: (folder / "image.bin").unlink(), ("export.mobileclip-json-names-export", "image.bin")),
        (
            lambda folder: (folder / "image.xml").write_bytes((folder / "image.xml").read_bytes()[:5000]),
            ("export.file-exported-sha-256", "image.xml"),
        ),
    ],
)
def test_damaged_files_are_refused(plain, tmp_path, damage, error):
    folder = shutil.copytree(plain, tmp_path / "out")
    damage(folder)
    with fails(*error):
        verify_export(folder)
    tower = read_contract(plain).towers[0]
    for look in (targets["openvino"].inspect, targets["openvino"].open):
        with fails("export.read-openvino-update-pip", "image.xml"):
            look(folder / "image.xml", tower)


def test_files_that_are_not_what_the_contract_says_are_refused(plain, half):
    image, text = read_contract(plain).towers
    look = targets["openvino"].inspect
    look(plain / "image.xml", image)
    for wrong in (
        attrs.evolve(image, input_shape=(1, 3, 32, 32)),
        attrs.evolve(image, input_shape=(None, 3, 64, 64)),
        attrs.evolve(image, input_dtype="uint8"),
        attrs.evolve(image, input_name="image"),
        attrs.evolve(image, output_name="embedding"),
        attrs.evolve(image, output_shape=(1, 13)),
        text,
    ):
        with fails("export.inputs-outputs-contract-says"):
            look(plain / "image.xml", wrong)
    with fails("export.inputs-outputs-contract-says"):
        look(half / "image.xml", image)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(plain, tmp_path, value):
    core = ov.Core()
    model = core.read_model(plain / "image.xml")
    node = next(
        node
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32 and np.prod(node.shape) > 100
    )
    weights = node.get_data().copy()
    weights.flat[7] = value
    broken = ov.opset13.constant(weights)
    for user in node.output(0).get_target_inputs():
        user.replace_source_output(broken.output(0))
    ov.save_model(model, tmp_path / "image.xml", compress_to_fp16=False)
    with fails("export.weight-holds-nan-infinity"):
        targets["openvino"].inspect(tmp_path / "image.xml", read_contract(plain).towers[0])


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_a_missing_extra_names_its_command(plain, transformers, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(f"needs {missing}: {install('openvino')}")):
        export_model(transformers, ExportSpec(out=tmp_path / "out", target="openvino"))
    with pytest.raises(ImportError, match=re.escape(install("openvino"))):
        verify_export(plain)
    assert not (tmp_path / "out").exists()


_ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from mobileclip.export import ExportSpec, export_model
export_model("icons", ExportSpec(out=sys.argv[1], target="openvino", tower="text"))
"""


@pytest.mark.slow
def test_a_text_tower_is_compiled_for_one_thread(tmp_path):
    """OpenVINO's own fusing ends the process there, without a word."""
    done = subprocess.run([sys.executable, "-c", _ON_ONE_CORE, str(tmp_path / "out")], check=False)
    assert done.returncode == 0

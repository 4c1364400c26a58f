"""All targets in all their precisions: they keep the contract of targets, and their files hold what they should."""

import importlib
import logging
import shutil
import subprocess
import sys
from functools import cache
from types import ModuleType

import attrs
import numpy as np
import pytest
import torch

from mobileclip.data import Tokenizer
from mobileclip.encoders import DualEncoderSpec
from mobileclip.export import ExportSpec, bundled_samples, read_contract, read_report, targets, verify_export
from mobileclip.export.export import tower_file
from mobileclip.export.int8 import weighted_layers
from mobileclip.export.targets.executorch import LARGEST_BATCH
from mobileclip.extras import install
from mobileclip.inference.openvino_backend import PROCESSOR_OPTIONS, import_quietly
from tests.contracts.targets import check_target
from tests.errors import fails
from tests.export import models
from tests.export.hostile_folders import sign
from tests.export.litert import EXPORT, model as litert_model
from tests.export.stored import IS_MAC, STORED, coreml_operations
from tests.once import programs_read_once
from tests.preloaded import preloaded

# Of every target one precision: what other tests export anyway, and one that is converted for this.
EXPORTED_ANYWAY = {("onnx", "float32"), ("openvino", "float32")}
BY_DEFAULT = {("torch", "int8"), ("litert", "float32"), *EXPORTED_ANYWAY}
EVERY = [
    pytest.param(target, precision, marks=[pytest.mark.slow] * ((target, precision) not in BY_DEFAULT))
    for target in targets
    for precision in (targets[target].precisions if target != "litert" else ("float32",))
]


def in_turn(*fast, slow=()):
    return [*fast, *(pytest.param(one, marks=pytest.mark.slow) for one in slow)]


def written(export, folder, name="tower"):
    """A tower's file, and what a contract says of it."""
    target = targets[export.spec.target]
    path = folder / f"{name}{target.suffix}"
    return path, tower_file(export, path.name, target.export(export, path))


def answers(path, file, target, inputs):
    run = targets[target].open(path, file)
    return torch.cat([run(row[None])[0] for row in inputs])


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_a_target_keeps_the_contract(target, precision, small_export, request, tmp_path):
    if target == "litert":  # its converter is elsewhere, see test_litert.py
        importlib.import_module("ai_edge_litert")
        # Another machine wrote it, whose report this one's may differ from in the last digits.
        folder = shutil.copytree(EXPORT, tmp_path / "out")
        (folder / "report.json").write_text(verify_export(folder, trust=True).to_json())
        sign(folder)
        check_target(litert_model(), folder)
    elif (target, precision) in EXPORTED_ANYWAY:
        check_target(models.small_model(target), small_export(target))
    else:
        # In 8 bits random weights rank more captions otherwise than the check lets them.
        samples = models.few_samples() if precision == "int8" else None
        model = request.getfixturevalue("shallow" if (target, precision) in BY_DEFAULT else "convolutional")
        spec = ExportSpec(output=tmp_path / "out", target=target, precision=precision)
        with programs_read_once():
            check_target(model, spec, samples=samples)


@pytest.mark.parametrize("target", in_turn("onnx", slow=("openvino", "executorch", "coreml")))
def test_nothing_as_it_is_by_default(target, shallow, request, tmp_path):
    """float16, batches of any size, raw pixels, lengths as the model gives them."""
    if target == "onnx":
        folder = request.getfixturevalue("half_onnx")
    else:
        taken = {"preprocess": "float32"} if target == "coreml" else {}
        folder = models.exported(shallow, tmp_path / "out", target=target, **models.UNUSUAL | taken)
    image, text = read_contract(folder).towers
    assert (image.input_shape, text.input_shape) == ((None, 3, 64, 64), (None, 12))
    assert (image.compute, image.float32) == ("float16", ())
    if target == "coreml" and not IS_MAC:
        return
    report = verify_export(folder)
    assert report.passed, report.failures
    assert report == read_report(folder)
    run, images = targets[target].open(folder / image.file, image), models.raw_pixels(models.PIXELS)[:3]
    with torch.no_grad():
        expected = shallow.encode_image(models.pixels(models.PIXELS)[:3])
    given = run(images)[0]
    torch.testing.assert_close(given, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    # The next outputs are not written where these are.
    kept = given.clone()
    assert len(run(images[:2])[0]) == 2
    assert given.equal(kept)


@pytest.mark.parametrize("target", in_turn("onnx", slow=("openvino", "coreml", "executorch")))
def test_layers_beyond_half_precision_stay_in_float32(target, tmp_path):
    """The model is sound in float32; its text embeddings in float16 throughout would not be finite."""
    folder = models.exported(
        models.overflowing(models.TRANSFORMERS), tmp_path / "out", target=target, precision="float16", tower="text"
    )
    (text,) = read_contract(folder).towers
    assert (text.compute, text.float32) == ("float16", ("norm", "project"))
    if target == "coreml":
        linear = coreml_operations(folder / text.file, "linear")
        assert {one.outputs[0].dtype.__name__ for one in linear} == {"fp16", "fp32"}
    elif target == "openvino":
        # Where the processor has float16, it computes all in that.
        model = import_quietly("openvino").Core().read_model(folder / text.file)
        products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
        *others, last = (node.get_element_type().get_type_name() for node in products)
        assert (set(others), last) == ({"f16"}, "f32")
    else:
        assert read_report(folder).passed, read_report(folder).failures


# --- int8 ---

KEPT = {"image": ("stem.1.conv", "stages.1.blocks.0.attention.qkv", "head.project"), "text": ("layers.0.ffn.fc1",)}
LARGEST = {"coreml": 127}
ROUNDED_BY_DEFAULT = {("onnx", "image"), ("torch", "text")}


@pytest.fixture(scope="module")
def rounded(convolutional, shallow, tmp_path_factory):
    """What gives a tower in int8, written once: as it is given to the target, its file, and what a contract says."""
    folder = tmp_path_factory.mktemp("rounded")

    @cache
    def of(target, tower):
        model = convolutional if tower == "image" else shallow
        export = models.one_tower(model, tower, target=target, every=12, layers=KEPT[tower])
        if tower == "image":
            export = attrs.evolve(export, calibration=3 * export.calibration)
        return export, *written(export, folder, f"{tower}_{target}")

    return of


EACH = [
    pytest.param(target, tower, marks=[pytest.mark.slow] * ((target, tower) not in ROUNDED_BY_DEFAULT))
    for target in STORED
    for tower in KEPT
]


@pytest.mark.parametrize(("target", "tower"), EACH)
def test_int8_is_every_layer_but_those_that_are_kept(target, tower, rounded):
    """And nothing else is rounded: attention, norms and sums are float, tables that are looked up are float16."""
    export, path, file = rounded(target, tower)
    assert (file.compute, set(file.float32)) == ("int8", set(KEPT[tower]))
    stored = STORED[target](path)
    left = {name: layer.weight.detach().flatten(1).numpy() for name, layer in weighted_layers(export.encoder)}
    for layer in stored.layers:
        name = next(name for name, weight in left.items() if is_of(layer, weight))
        del left[name]
        assert (layer.scales is None) == (name in KEPT[tower]), name
        if layer.scales is not None:
            assert layer.is_fed_rounded, "what goes in is rounded too"
            assert abs(layer.rows.astype(int)).max() <= LARGEST.get(target, 64)
    assert not left
    assert not stored.others
    if tower == "text":
        weight = export.encoder.token_embedding.weight
        rounded = weight.detach().half().numpy()
        assert any(table.dtype == np.float16 and np.array_equal(table, rounded) for table in stored.tables)
        assert weight.dtype == torch.float32, "the model stays as it is"


def is_of(layer, weight):
    """Whether a file's layer is one of the model's: bit for bit, or to half a step of its channel."""
    if layer.rows.shape != weight.shape:
        return False
    if layer.scales is None:
        return np.allclose(layer.rows.astype(np.float32), weight, rtol=2**-11, atol=2**-24)
    scales = layer.scales.reshape(-1, 1)
    return bool((abs(layer.rows * scales - weight) <= 0.501 * scales + 1e-3 * abs(weight)).all())


@pytest.mark.parametrize("target", in_turn("onnx", slow=("torch", "openvino", "coreml")))
def test_ranges_are_those_of_the_calibration_data(target, rounded):
    """The first thing that is rounded is the pixels: their range is known beforehand, and wider than that of others."""
    export, path, _ = rounded(target, "image")
    least, most = STORED[target](path).first_range
    step = 1.01 * (most - least) / 255
    assert least == pytest.approx(float(export.calibration.min()), abs=step)
    assert most == pytest.approx(float(export.calibration.max()), abs=step)


def test_int8_loads_without_what_wrote_it(rounded, tmp_path):
    """PyTorch alone: its own operations that round must be imported first, and that is all."""
    _, path, _ = rounded("torch", "text")
    code = f"""
import sys
sys.modules["torchao"] = sys.modules["mobileclip"] = None
import torch
import torch.ao.quantization.fx._decomposed
module = torch.export.load({str(path)!r}).module()
print(tuple(module(torch.zeros(1, 12, dtype=torch.int64)).shape))
"""
    done = preloaded("torch").call("tests.preloaded:python", "-c", code, folder=tmp_path)
    assert (done.status, done.output) == (0, "(1, 12)\n")


@pytest.mark.slow
def test_verify_needs_no_torchao(transformers, tmp_path, monkeypatch):
    folder = models.exported(transformers, tmp_path / "out", target="torch", precision="int8", tower="text")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert verify_export(folder) == read_report(folder)


@pytest.mark.slow
def test_the_processor_computes_in_int8(transformers, tmp_path):
    core = import_quietly("openvino").Core()
    if "INT8" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO has no int8 on this processor")
    path, _ = written(models.one_tower(transformers, "image", target="openvino"), tmp_path)
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    notes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    computed = {(one["layerType"].astype(str), one["runtimePrecision"].astype(str)) for one in notes}
    assert {bits for kind, bits in computed if kind in ("Convolution", "FullyConnected")} <= {"u8", "i8"}
    assert {bits for kind, bits in computed if kind == "MVN"} == {"f32"}


# --- what is refused, and what is said ---


@pytest.mark.parametrize(("target", "precision"), [("executorch", "bfloat16"), ("torch", "int8-weights")])
def test_a_precision_that_a_target_has_not(target, precision, transformers, tmp_path):
    with fails(ValueError, target, precision, "float32"):
        models.exported(transformers, tmp_path / "out", target=target, precision=precision)
    assert not list(tmp_path.iterdir())


PARTS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "executorch": ("torchao", "executorch.exir", "executorch.runtime"),
    "coreml": ("coremltools",),
}


@pytest.mark.parametrize(
    ("extra", "missing"),
    [
        pytest.param([target], part, marks=[pytest.mark.extra("openvino")] * (target == "openvino"))
        for target, parts in PARTS.items()
        for part in parts
    ],
)
def test_a_missing_extra_names_its_command(extra, missing, tmp_path, monkeypatch):
    (target,) = extra
    # Seconds to import, and only to say that a part lacks.
    for name in {"executorch": ("torchao", "executorch.exir"), "coreml": ("coremltools",)}.get(target, ()):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, missing, None)
    with fails(ImportError, f"needs {missing.partition('.')[0]}: `{install(target)}`"):
        models.exported("icons", tmp_path / "out", tower="text", target=target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", in_turn("onnx", slow=("openvino", "executorch", "coreml")))
def test_nothing_is_logged_and_loggers_stay_as_they_were(target, shallow, tmp_path, capfd, caplog):
    def state():
        root = logging.getLogger()
        return root.level, [*root.handlers], [*root.filters], root.manager.disable, logging.getLoggerClass()

    loud = ("onnxruntime", "executorch", "coremltools", "nncf", "openvino")
    with caplog.at_level(logging.INFO):
        export = models.one_tower(shallow, "text", target=target)
        capfd.readouterr()
        caplog.clear()
        before = state()
        written(export, tmp_path)
        assert state() == before
    assert not [one for one in caplog.records if one.name == "root" or any(name in one.pathname for name in loud)]
    assert capfd.readouterr() == ("", "")


# --- of one format each ---


@pytest.mark.slow
@torch.no_grad()
def test_executorch_in_int8(shallow, tmp_path):
    kept, options = "layers.0.ffn.fc1", {"dynamic_batch": True, "normalize": False}
    export = models.one_tower(shallow, "text", target="executorch", every=6, layers=[kept], **options)
    path, file = written(export, tmp_path)
    data, modules = path.read_bytes(), dict(weighted_layers(export.encoder))
    for name in (kept, "layers.0.ffn.fc2"):
        assert (modules[name].weight.numpy().tobytes() in data) == (name == kept)
    assert export.encoder.token_embedding.weight.half().numpy().tobytes() in data
    # Attention is XNNPACK's; nothing of it is left to the kernels that ExecuTorch itself has.
    assert file.outside
    attention = {f"aten::{name}" for name in ("bmm", "_softmax", "any", "logical_not", "convolution")}
    assert not {name.partition(".")[0] for name in file.outside} & attention
    inputs = Tokenizer(models.TOKENS)(bundled_samples().captions)[: LARGEST_BATCH + 1]
    run = targets["executorch"].open(path, file)
    together = run(inputs[:5])[0]
    torch.testing.assert_close(answers(path, file, "executorch", inputs[:5]), together, rtol=1e-3, atol=1e-3)
    similar = torch.cosine_similarity(together.double(), shallow.encode_text(inputs[:5]).double())
    assert 0.98 < float(similar.min()) < 1 - 1e-6, "int8 is near float32, and not the same"
    with fails(ValueError, str(LARGEST_BATCH), str(LARGEST_BATCH + 1)):
        run(inputs)


@pytest.mark.slow
@torch.no_grad()
def test_executorch_in_float16_of_wide_layers(tmp_path):
    """From 256 channels on, ExecuTorch's own layer norm is wrong in float16, and says nothing."""
    model = models.seeing(DualEncoderSpec(image=models.MCI, text=attrs.evolve(models.SHALLOW.text, width=256)))
    export = models.one_tower(model, "text", target="executorch", precision="float16", normalize=False)
    tokens = Tokenizer(models.TOKENS)(bundled_samples().captions)[:4]
    ours, expected = answers(*written(export, tmp_path), "executorch", tokens), model.encode_text(tokens)
    assert float(torch.cosine_similarity(ours, expected).min()) > 0.9995
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("precision", in_turn("float16", slow=("bfloat16",)))
@pytest.mark.extra("openvino")
def test_openvino_files_say_what_to_ask_for(convolutional, tmp_path, precision):
    ov = import_quietly("openvino")
    path, file = written(models.one_tower(convolutional, "image", target="openvino", precision=precision), tmp_path)
    short, capability = {"float16": ("f16", "FP16"), "bfloat16": ("bf16", "BF16")}[precision]
    model = ov.Core().read_model(path)
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    large = [node for node in constants if node.get_element_type().is_real() and np.prod(node.shape) > 100]
    assert {node.get_element_type().get_type_name() for node in large} == {short}
    assert model.get_rt_info(["mobileclip", "INFERENCE_PRECISION_HINT"]).astype(str) == short
    able = capability in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # Fused by OpenVINO itself, a graph of bfloat16 is rounded to it after every operation, whatever is asked for.
    hints = {"INFERENCE_PRECISION_HINT": short if able else "f32", **PROCESSOR_OPTIONS}
    picture = models.pixels(models.PIXELS)[:1]
    expected = torch.from_numpy(ov.Core().compile_model(path, "CPU", hints)([picture.numpy()])[0].copy())
    torch.testing.assert_close(targets["openvino"].open(path, file)(picture)[0], expected, rtol=0, atol=1e-6)


_ALONE = """
import os, socket, sys
def refuse(self, address):
    raise SystemExit(f"connects to {address}")

socket.socket.connect = refuse
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from mobileclip.export import ExportSpec, export_model
export_model("icons", ExportSpec(output=sys.argv[1], target="openvino", tower="text"), show_progress=False)
sys.exit("openvino_telemetry was imported" if "openvino_telemetry" in sys.modules else 0)
"""


@pytest.mark.slow
def test_openvino_sends_nothing_and_compiles_a_text_tower_for_one_thread(tmp_path):
    """OpenVINO's own fusing ends the process there, without a word."""
    command = [sys.executable, "-c", _ALONE, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Places where models are run: the names, shapes and types that each expects, and what the files say of themselves."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from huggingface_hub import metadata_load

import mobileclip
from mobileclip.encoders import save_model
from mobileclip.export import ExportSpec, Preset, presets, read_contract, read_report, verify_export
from tests.build.commands import run
from tests.errors import fails
from tests.export.hostile_folders import failed, negate
from tests.export.litert import EXPORT
from tests.export.models import AUTHOR, LEAST, exported, seeing


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # Of random weights, whose rankings 8 bits leave alone.
    return exported(seeing(LEAST, seed=1), tmp_path_factory.mktemp("presets") / "browser", preset="browser")


def test_a_browser_gets_every_precision_in_one_folder(browser):
    names = {path.name for path in (browser / "onnx").iterdir()}
    assert names == {f"{tower}_model{end}.onnx" for tower in ("vision", "text") for end in ("", "_fp16", "_quantized")}
    contract = read_contract(browser)
    assert [one.precision for one in contract.per_precision] == ["float32", "float16", "int8-weights"]
    report = read_report(browser)
    assert report.passed, report.failures
    assert verify_export(browser) == report
    others = [(precision, tower) for precision in ("float16", "int8-weights") for tower in ("image", "text")]
    assert [(tower.precision, tower.tower) for tower in report.towers[2:]] == others
    assert "float16: image cosine, minimum" in {check.name for check in report.checks}
    assert mobileclip.load(browser).encode_text("a cat").isfinite().all()


def test_another_precisions_file_is_held_to_its_checks_too(browser, tmp_path):
    folder = shutil.copytree(browser, tmp_path / "out")
    negate(folder, "onnx/text_model_fp16.onnx")
    names = failed(verify_export(folder))
    assert "float16: text cosine, minimum" in names
    assert all(name.startswith("float16: ") for name in names)
    shutil.copy(browser / "mobileclip.json", folder)
    with fails(ValueError, "text_model_fp16.onnx"):
        verify_export(folder)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("vision_model", ["batch_size"]),
        ("text_model_fp16", ["batch_size", "sequence_length"]),
        ("vision_model_quantized", ["batch_size"]),
    ],
)
def test_the_batch_axis_has_a_name_that_can_be_fixed(browser, name, axes):
    path = browser / "onnx" / f"{name}.onnx"
    graph, options = onnx.load(path).graph, onnxruntime.SessionOptions()
    for value, expected in ((graph.input[0], axes), (graph.output[0], axes[:1])):
        assert [side.dim_param for side in value.type.tensor_type.shape.dim if side.dim_param] == expected
    for axis, size in (("batch_size", 2), ("sequence_length", 12)):
        options.add_free_dimension_override_by_name(axis, size)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[taken.type]
    (given,) = session.run(None, {taken.name: np.ones(taken.shape, dtype)})
    assert (taken.shape[0], given.shape) == (2, (2, 12))


def test_files_have_their_licence_author_and_contract(browser):
    told = {one.key: one.value for one in onnx.load(browser / "onnx" / "text_model_fp16.onnx").metadata_props}
    assert told["author"] == AUTHOR
    assert told["license"] == read_contract(browser).licence
    assert json.loads(told["mobileclip"])["text"]["end_id"] == 599
    assert AUTHOR in (browser / "LICENSE").read_text()
    card = (browser / "README.md").read_text()
    assert "`onnx/vision_model_quantized.onnx` | int8-weights | `pixel_values`: float32 any x 3 x 64 x 64" in card
    assert metadata_load(browser / "README.md")["license"] == "other"
    assert presets["browser"].use in card
    assert {"README.md", "LICENSE"} <= set(read_contract(browser).files)


def test_litert_files_have_their_notes_and_run_as_before():
    import ai_edge_quantizer  # noqa: F401
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.schema_py_generated import ModelT

    from mobileclip.export.targets.litert import operations_of, with_notes

    data = (EXPORT / "image.tflite").read_bytes()
    noted = with_notes(data, {"name": "mine", "license": "mit", "author": "me"})
    model = ModelT.InitFromPackedBuf(noted, 0)
    held = {one.name.decode(): bytes(model.buffers[one.buffer].data).decode() for one in model.metadata if one.name}
    assert {"name": "mine", "license": "mit", "author": "me"}.items() <= held.items()
    assert [one.kind for one in operations_of(noted)] == [one.kind for one in operations_of(data)]
    pixels = np.arange(3 * 32 * 32, dtype=np.uint8).reshape(1, 3, 32, 32)
    given = [Interpreter(model_content=one).get_signature_runner()(pixels=pixels) for one in (data, noted)]
    np.testing.assert_array_equal(*(one["image_embedding"] for one in given))


def test_a_server_takes_batches_of_any_size_by_the_command(tmp_path, capsys):
    save_model(seeing(LEAST), tmp_path / "model.safetensors")
    options = ("--for", "server", "--tower", "text", "-o", tmp_path / "out")
    status, _, said = run(capsys, "export", tmp_path / "model.safetensors", *options)
    assert status == 0
    assert "for server: target onnx, layout plain, float32; pixels: host" in said
    (text,) = read_contract(tmp_path / "out").towers
    assert text.input_shape == (None, 12)
    assert "num_threads=2" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_given_beside_a_preset_stays():
    spec = presets["android"].fitted(ExportSpec(output="out", precision="int8-weights", features=(1,)))
    assert (spec.target, spec.precision, spec.also, spec.preprocess) == ("litert", "int8-weights", (), "uint8")
    assert spec.features == (1,)
    assert presets["browser"].fitted(ExportSpec(output="out")).precisions == ("float32", "float16", "int8-weights")
    assert presets["browser"].fitted(ExportSpec(output="out", precision="float16")).precisions == ("float16",)


def test_a_preset_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "_values", presets._values | {"kiosk": Preset(target="torch", use="Ask the kiosk.")})
    folder = exported(seeing(LEAST), tmp_path / "out", preset="kiosk", tower="text")
    assert read_contract(folder).target == "torch"
    assert "Ask the kiosk." in (folder / "README.md").read_text()


def test_presets_and_precisions_that_do_not_fit_are_refused(tmp_path):
    for options, words in (
        ({"preset": "iphon"}, ["iphone"]),
        ({"also": ("float16",)}, ["plain"]),  # whose files are called alike
        ({"layout": "transformers.js", "also": ("bfloat16",)}, ["transformers.js", "bfloat16", "float32"]),
        ({"layout": "transformers.js", "precision": "bfloat16"}, ["transformers.js", "bfloat16", "float32"]),
        ({"layout": "apple"}, ["onnx"]),
    ):
        with fails(ValueError, *words):
            exported(seeing(LEAST), tmp_path / "out", **options)

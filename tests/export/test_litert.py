"""LiteRT: a stored export is read and run, weights are rounded, and Google's converter writes where it is installed."""

import shutil
import sys

import numpy as np
import pytest
import torch

from mobileclip.data import Tokenizer
from mobileclip.export import read_contract, read_report, targets, verify_export
from mobileclip.export.export import tower_file
from mobileclip.export.targets import WrittenFile, litert
from mobileclip.export.targets.litert import WEIGHTED, converted, operations_of, with_quantised_weights
from tests.errors import fails
from tests.export.hostile_folders import sign
from tests.export.litert import EXPORT, INT8, LENGTHS, converter, export_of, int8_export, lengths_export, model
from tests.export.models import TOKENS, TRANSFORMERS, exported, seeing

pytestmark = pytest.mark.extra("litert")
TARGET = targets["litert"]
needs_converter = pytest.mark.skipif(converter() is None, reason="no LiteRT converter: make litert")


@pytest.fixture(scope="module")
def stored():
    """The model that the stored export was made of."""
    return model()


def opened(path, export, compute="float32"):
    """What runs a tower's file."""
    return TARGET.open(path, tower_file(export, path.name, WrittenFile(compute=compute)))


def test_it_gives_what_the_model_gives():
    report = verify_export(EXPORT, trust=True)
    assert report.passed, report.failures
    assert report.runtime == "litert"
    assert all(tower.cosine_minimum > 0.999999 for tower in report.towers)
    assert [tower.stage for tower in report.towers] == [None, 0, 1, None]
    inputs = {file.file: (file.input_dtype, file.input_shape) for file in read_contract(EXPORT).towers}
    assert inputs == {"image.tflite": ("uint8", (1, 3, 32, 32)), "text.tflite": ("int32", (1, 12))}


def test_a_damaged_file_another_input_and_a_weight_that_is_no_number_are_told(stored, tmp_path):
    folder = shutil.copytree(EXPORT, tmp_path / "export")
    path, sound = folder / "image.tflite", (EXPORT / "image.tflite").read_bytes()
    weight = stored.image_encoder.head.project.weight.detach().numpy()
    path.write_bytes(sound.replace(weight.tobytes(), np.full_like(weight, np.nan).tobytes()))
    sign(folder)
    report = verify_export(folder, trust=True)
    assert any(one.startswith("image embeddings with NaN or infinity is 5") for one in report.failures)
    for damaged in (sound[:3000], b"\0" * 40 + sound[40:], b"", (EXPORT / "text.tflite").read_bytes()):
        path.write_bytes(damaged)
        sign(folder)
        with fails(ValueError, "image.tflite"):
            verify_export(folder, trust=True)
    _, file = read_contract(EXPORT).towers
    with fails(ValueError, "gpu"):
        TARGET.open(EXPORT / file.file, file, device="gpu")


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize(("precision", "error"), [("float16", 2e-3), ("int8-weights", 2e-2)])
def test_weights_in_fewer_bits_are_computed_with_in_float32(stored, tower, precision, error, tmp_path):
    export, path = export_of(stored, tower, precision), tmp_path / f"{tower}.tflite"
    plain = (EXPORT / path.name).read_bytes()
    path.write_bytes(with_quantised_weights(plain, precision))
    assert path.stat().st_size < len(plain)
    held = operations_of(path.read_bytes())
    in_float32 = [one for one in held if one.kind in WEIGHTED and one.weight is not None]
    assert {one.kind for one in in_float32} == ({"DEPTHWISE_CONV_2D"} if precision == "int8-weights" else set())
    if tower == "text" and precision == "int8-weights":  # of a table, the rows alone become float32
        kinds = [one.kind for one in held]
        assert kinds.count("EMBEDDING_LOOKUP") == 1
        others = [one for one in held if one.kind in WEIGHTED and one.kind != "DEPTHWISE_CONV_2D"]
        assert kinds.count("DEQUANTIZE") == len(others) - 1
    run, expected = opened(path, export), export.graph(torch.float32)(export.calibration[:1])
    for found, one in zip(run(export.calibration[:1]), expected if tower == "image" else [expected], strict=True):
        assert 0 < float((found - one).norm() / one.norm()) < error


def test_int8_is_static():
    """The converter has written the file; its input is the picture, and not what the first layer makes int8 of."""
    export = int8_export()
    held = operations_of(INT8.read_bytes())
    kinds = [one.kind for one in held]
    assert min(kinds.count("QUANTIZE"), kinds.count("DEQUANTIZE")) > 3
    (project,) = (one for one in held if one.kind in WEIGHTED and one.weight is not None)
    assert np.array_equal(project.weight, export.encoder.head.project.weight.detach().numpy())
    expected = export.graph(torch.float32)(export.calibration[:1])[0]
    found = opened(INT8, export, "int8")(export.calibration[:1])[0]
    assert 1e-4 < float((found - expected).norm()) < 0.2


@pytest.mark.parametrize("precision", ["float32", "float16", "int8-weights"])
def test_a_causal_tower_has_a_signature_for_each_length_and_its_weights_once(precision, tmp_path):
    export, path, sound = lengths_export(precision), tmp_path / "text.tflite", LENGTHS.read_bytes()
    path.write_bytes(sound if precision == "float32" else with_quantised_weights(sound, precision))
    assert tables_of(path, export) == 1
    assert export.lengths == (8, 12)
    tokens = Tokenizer(TOKENS)(["a cat", "red"]).int()
    run, expected = opened(path, export), export.graph(torch.float32)(tokens)
    for length in export.lengths:
        found = torch.cat([run(row[None, :length].contiguous())[0] for row in tokens])
        assert torch.cosine_similarity(found, expected).min() > 0.999


def tables_of(path, export):
    """How many tables of token embeddings a file stores."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    shape = list(export.encoder.token_embedding.weight.shape)
    alike = (one for graph in model.subgraphs for one in graph.tensors if one.shape is not None)
    buffers = {one.buffer for one in alike if list(one.shape) == shape}
    return sum(model.buffers[buffer].data is not None for buffer in buffers)


def test_who_exports_is_told_how_to_get_the_converter(tmp_path):
    """Before the model is read, which may have to be fetched."""
    told = "python3 -m venv litert-converter && litert-converter/bin/pip install 'litert-torch"
    converters = [({"converter": python}, told) for python in (None, tmp_path / "nothing", sys.executable)]
    for options, word in (*converters, ({"dynamic_batch": True}, "")):
        with fails(ValueError, word):
            exported(tmp_path / "none.safetensors", tmp_path / "out", target="litert", tower="text", **options)


def test_a_converter_that_fails_is_told_with_its_last_words(stored, tmp_path):
    """The converter of this test writes what is stored."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncp "{EXPORT / "text.tflite"}" "$4"\n', encoding="utf-8")
    python.chmod(0o755)
    export = export_of(stored, "text", "float16", converter=python)
    assert converted(export, TARGET.graph(export)) == (EXPORT / "text.tflite").read_bytes()
    python.write_text("#!/bin/sh\necho the last words >&2\nexit 3\n", encoding="utf-8")
    with fails(ValueError, "the last words"):
        converted(export, TARGET.graph(export))


@needs_converter
@pytest.mark.slow
@pytest.mark.parametrize("precision", TARGET.precisions)
def test_the_converter_writes_both_towers(precision, tmp_path):
    options = {"precision": precision, "normalize": False, "converter": converter()}
    folder = exported(seeing(TRANSFORMERS), tmp_path / "out", target="litert", **options)
    report = verify_export(folder, trust=True)
    assert report.passed, report.failures
    assert report == read_report(folder)
    assert read_contract(folder).versions["litert-torch"] == litert.converter_version(converter())


@needs_converter
@pytest.mark.slow
def test_the_converter_writes_what_is_stored(stored, tmp_path):
    options = {"preprocess": "uint8", "features": (0, 1), "converter": converter()}
    folder = exported(stored, tmp_path / "out", target="litert", **options)
    for name in ("image.tflite", "text.tflite"):
        now, before = (operations_of((place / name).read_bytes()) for place in (folder, EXPORT))
        assert [one.kind for one in now] == [one.kind for one in before]

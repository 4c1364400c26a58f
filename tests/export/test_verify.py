"""Exports that are damaged, made of bad models or written by other versions: each is told apart."""

import json
import shutil

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from mobileclip.encoders import CheckpointError, load_model
from mobileclip.export import ExportSpec, export_model, targets, verify_export
from tests.errors import fails
from tests.export.hostile_folders import change, failed, negate, sign
from tests.export.models import CONVOLUTIONAL, SHALLOW, constant, seeing
from tests.preloaded import preloaded


@pytest.fixture
def copied(plain_onnx, tmp_path):
    return shutil.copytree(plain_onnx, tmp_path / "copied")


@pytest.fixture
def spec(tmp_path):
    return ExportSpec(output=tmp_path / "out", target="torch", tower="text")


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        *(({"target": target}, [f"'{target}', which"]) for target in targets),
        ({"target": "mine\n"}, ["'mine\\n'"]),
        *((empty, []) for empty in ({}, [])),
    ],
    ids=str,
)
def test_an_export_is_no_checkpoint(contract, words, tmp_path):
    (tmp_path / "mobileclip.json").write_text(json.dumps(contract))
    save_file({"images": torch.zeros(1)}, tmp_path / "golden.safetensors")
    with fails(CheckpointError, *words):
        load_model(tmp_path)


def test_tampered_and_missing_files(copied):
    for name in (
        "image.onnx",
        "text.onnx",
        "tokenizer.json",
        "golden.safetensors",
        "evaluation.safetensors",
        "report.json",
    ):
        path = copied / name
        content = bytearray(whole := path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with fails(ValueError, name):
            verify_export(copied)
        path.unlink()
        with fails(ValueError, name):
            verify_export(copied)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda contract: contract.update(format_version=99), ["99"]),
        (lambda contract: contract.update(files={"../image.onnx": "0"}), []),
        (lambda contract: contract.update(files={}), ["image.onnx", "image"]),
        (lambda contract: contract.update(colour="red"), ["'colour'"]),
        (lambda contract: contract.update(image=None), ["image"]),
        (lambda contract: contract.update(text=None), ["text"]),
        (lambda contract: contract["versions"].update(onnxruntime="99.1.0"), ["99.1.0"]),
        (lambda contract: contract["versions"].update(onnxruntime="new"), ["new"]),
        (lambda contract: contract["versions"].pop("onnxruntime"), ["onnxruntime"]),
    ],
)
def test_contracts_that_are_not_true_or_of_another_version_are_refused(copied, edit, words):
    change(copied, edit)
    with fails(ValueError, *words):
        verify_export(copied)


def test_a_wrong_network_fails_the_checks(copied):
    """The same graph with one weight turned around: it runs, has the right shapes, and ranks wrongly."""
    negate(copied, "image.onnx")
    names = failed(verify_export(copied))
    assert {"image cosine, minimum", "ranking agreement"} <= names
    assert not any(name.startswith("text") for name in names)


@pytest.mark.parametrize("bias", [0, torch.nan])
def test_a_model_that_no_export_could_be_measured_against_is_refused_before_the_work(bias, tmp_path, monkeypatch):
    monkeypatch.setattr(type(targets["torch"]), "export", lambda *_: pytest.fail("it was converted"))
    model = constant(CONVOLUTIONAL)
    with torch.no_grad():
        model.image_encoder.head.project.bias.mul_(bias)
    with fails(ValueError, "image", "embedding"):
        export_model(model, ExportSpec(output=tmp_path / "out", target="torch"))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_contract_and_stored_inputs_without_embeddings_are_refused(copied, tmp_path):
    tensors = load_file(copied / "evaluation.safetensors")
    save_file(tensors | {"text.embedding": tensors["text.embedding"][:3]}, copied / "evaluation.safetensors")
    sign(copied)
    for folder in (copied, tmp_path):
        with fails(ValueError):
            verify_export(folder)


def test_weights_that_are_not_finite_fail_a_check_and_other_files_are_refused(copied):
    path = copied / "image.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = b"\xff" * 4 + weight.raw_data[4:]
    onnx.save(model, path)
    sign(copied)
    assert any(one.startswith("image embeddings with NaN or infinity is 12") for one in verify_export(copied).failures)
    for content in ((copied / "text.onnx").read_bytes(), b"not a network"):
        path.write_bytes(content)
        sign(copied)
        with fails(ValueError, "image.onnx"):
            verify_export(copied)


def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(spec, tmp_path):
    """Killed between the towers' files and the contract, by the kernel."""
    code = f"""
import os, signal
from mobileclip.export import ExportSpec, export_model
from mobileclip.export.measured import Measured
from tests.export.models import SHALLOW, seeing
Measured.write = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
export_model(seeing(SHALLOW), ExportSpec(output={str(spec.output)!r}, target="torch", tower="text"))
"""
    done = preloaded().call("tests.preloaded:python", "-c", code, folder=tmp_path, seconds=120)
    assert done.status == -9, done.output
    assert not spec.output.exists()
    assert list(tmp_path.rglob("text.pt2"))
    assert not list(tmp_path.rglob("mobileclip.json"))
    assert export_model(seeing(SHALLOW), spec) == spec.output
    assert [*tmp_path.iterdir()] == [spec.output], "the next export into the same place tidies up"


def test_what_others_write_or_hold_in_the_folder_of_an_export_is_left_alone(shallow, spec, tmp_path, monkeypatch):
    opened, written, ours = type(targets["torch"]).open, [], []

    def meanwhile(self, path, file, **options):
        if not written:
            written.append(path.read_bytes())
            ours.extend(tmp_path.glob(".*.exporting"))
            with fails(ValueError):
                export_model(shallow, spec)
            assert path.read_bytes() == written[0]
        return opened(self, path, file, **options)

    monkeypatch.setattr(type(targets["torch"]), "open", meanwhile)
    export_model(shallow, spec)
    assert [*tmp_path.iterdir()] == [spec.output]
    assert [(spec.output / "text.pt2").read_bytes()] == written
    mine = ours[0] / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    export_model(shallow, spec, overwrite=True)
    assert [*mine.parent.iterdir()] == [mine]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_ctrl_c_or_an_error_leaves_nothing(shallow, spec, tmp_path, monkeypatch, error):
    def interrupt(*_, **__):
        raise error

    monkeypatch.setattr(type(targets["torch"]), "open", interrupt)
    with pytest.raises(error):
        export_model(shallow, spec)
    assert not list(tmp_path.iterdir())

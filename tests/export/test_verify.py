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
from tests.export.hostile_folders import negate, sign
from tests.export.models import CONVOLUTIONAL, SHALLOW, constant, seeing
from tests.preloaded import preloaded


@pytest.fixture
def copied(plain_onnx, tmp_path):
    return shutil.copytree(plain_onnx, tmp_path / "copied")


def change(folder, edit):
    contract = json.loads((folder / "mobileclip.json").read_text())
    edit(contract)
    (folder / "mobileclip.json").write_text(json.dumps(contract))


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        *(({"target": target}, [f"'{target}', which"]) for target in targets),
        ({"target": "mine\n"}, ["'mine\\n'"]),
        ({}, []),
        ([], []),
    ],
    ids=str,
)
def test_an_export_is_no_checkpoint(contract, words, tmp_path):
    (tmp_path / "mobileclip.json").write_text(json.dumps(contract))
    save_file({"images": torch.zeros(1)}, tmp_path / "golden.safetensors")
    with fails(CheckpointError, *words):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "name", ["image.onnx", "text.onnx", "tokenizer.json", "golden.safetensors", "evaluation.safetensors", "report.json"]
)
def test_tampered_and_missing_files(copied, name):
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with fails(ValueError, name):
        verify_export(copied)
    path.unlink()
    with fails(ValueError, name):
        verify_export(copied)


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


def test_a_folder_without_a_contract_is_refused(tmp_path):
    with fails(ValueError):
        verify_export(tmp_path)


def test_a_wrong_network_fails_the_checks(copied):
    """The same graph with one weight turned around: it runs, has the right shapes, and ranks wrongly."""
    negate(copied, "image.onnx")
    report = verify_export(copied)
    assert not report.passed
    failed = {check.name for check in report.checks if not check.passed}
    assert {"image cosine, minimum", "ranking agreement"} <= failed
    assert not any(name.startswith("text") for name in failed)


def zero(model):
    model.image_encoder.head.project.bias.zero_()


def not_a_number(model):
    model.image_encoder.head.project.bias[0] = torch.nan


@pytest.mark.parametrize("change", [zero, not_a_number])
def test_a_model_that_no_export_could_be_measured_against_is_refused_before_the_work(change, tmp_path, monkeypatch):
    monkeypatch.setattr(type(targets["torch"]), "export", lambda *_: pytest.fail("it was converted"))
    model = constant(CONVOLUTIONAL)
    with torch.no_grad():
        change(model)
    with fails(ValueError, "image", "embedding"):
        export_model(model, ExportSpec(output=tmp_path / "out", target="torch"))
    assert not list(tmp_path.iterdir())


def test_stored_inputs_without_embeddings_are_refused(copied):
    tensors = load_file(copied / "evaluation.safetensors")
    tensors["text.embedding"] = tensors["text.embedding"][:3]
    save_file(tensors, copied / "evaluation.safetensors")
    sign(copied)
    with fails(ValueError):
        verify_export(copied)


def test_weights_that_are_not_finite_fail_a_check_and_other_files_are_refused(copied):
    model = onnx.load(copied / "image.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    broken = onnx.numpy_helper.to_array(weight).copy()
    broken.flat[0] = float("nan")
    weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    onnx.save(model, copied / "image.onnx")
    sign(copied)
    assert any(
        check.startswith("image embeddings with NaN or infinity is 12") for check in verify_export(copied).failures
    )
    shutil.copy(copied / "text.onnx", copied / "image.onnx")
    sign(copied)
    with fails(ValueError, "image.onnx"):
        verify_export(copied)
    (copied / "image.onnx").write_bytes(b"not a network")
    sign(copied)
    with fails(ValueError, "image.onnx"):
        verify_export(copied)


def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(tmp_path):
    """Killed between the towers' files and the contract, by the kernel."""
    code = f"""
import os, signal
from pathlib import Path
from mobileclip.export import ExportSpec, export_model
from mobileclip.export.measured import Measured
from tests.export.models import SHALLOW, seeing
Measured.write = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
export_model(seeing(SHALLOW), ExportSpec(output=Path({str(tmp_path)!r}) / "out", target="torch", tower="text"))
"""
    done = preloaded().call("tests.preloaded:python", "-c", code, folder=tmp_path, seconds=120)
    assert done.status == -9, done.output
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("text.pt2"))
    assert not list(tmp_path.rglob("mobileclip.json"))
    spec = ExportSpec(output=tmp_path / "out", target="torch", tower="text")
    assert export_model(seeing(SHALLOW), spec) == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the next export into the same place tidies up"


def test_what_a_living_process_writes_is_left_alone(shallow, tmp_path, monkeypatch):
    spec, opened = ExportSpec(output=tmp_path / "out", target="torch", tower="text"), type(targets["torch"]).open
    written = []

    def meanwhile(self, path, file, **options):
        if not written:
            written.append(path.read_bytes())
            with fails(ValueError):
                export_model(shallow, spec)
            assert path.read_bytes() == written[0]
        return opened(self, path, file, **options)

    monkeypatch.setattr(type(targets["torch"]), "open", meanwhile)
    export_model(shallow, spec)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [(tmp_path / "out" / "text.pt2").read_bytes()] == written


def test_a_folder_that_is_called_as_ours_keeps_what_it_holds(shallow, tmp_path, monkeypatch):
    spec, opened = ExportSpec(output=tmp_path / "out", target="torch", tower="text"), type(targets["torch"]).open
    ours = []

    def seen(self, path, file, **options):
        ours.extend(tmp_path.glob(".*.exporting"))
        return opened(self, path, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(targets["torch"]), "open", seen)
        export_model(shallow, spec)
    mine = ours[0] / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    export_model(shallow, spec, overwrite=True)
    assert [path.name for path in mine.parent.iterdir()] == ["notes.txt"]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_ctrl_c_or_an_error_leaves_nothing(shallow, tmp_path, monkeypatch, error):
    def interrupt(*_, **__):
        raise error

    monkeypatch.setattr(type(targets["torch"]), "open", interrupt)
    with pytest.raises(error):
        export_model(shallow, ExportSpec(output=tmp_path / "out", target="torch", tower="text"))
    assert not list(tmp_path.iterdir())

"""Whole classifiers as exports: logits in every runtime, names of classes in the contract, and what is refused."""

import json
import shutil

import attrs
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from mobileclip.encoders import ClassifierSpec, save_model
from mobileclip.export import ExportSpec, export_model, read_contract, read_report, verify_export
from mobileclip.export.verify import compare_rankings
from tests.build.commands import worked
from tests.errors import fails
from tests.export.hostile_folders import change
from tests.export.models import MCI, PIXELS, VIT, pixels

NAMES = ("cat", "dog", "fish")


def classifier(image):
    """A classifier whose logits tell the bundled pictures apart."""
    torch.manual_seed(0)
    model = ClassifierSpec(image=image, num_classes=len(NAMES), class_names=NAMES).build()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("gamma", "position")):
                tensor.normal_(0.5, 0.1)
        for module in model.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        features = model.image_encoder(pixels(PIXELS))
        model.head.weight.normal_()
        model.head.bias.copy_(-model.head(features).mean(0))
    return model.eval()


@pytest.fixture(scope="module")
def convolutional():
    return classifier(MCI.without_projection())


@pytest.fixture(scope="module")
def folder(convolutional, tmp_path_factory):
    place = tmp_path_factory.mktemp("classifier")
    save_model(convolutional, place / "classifier.safetensors")
    return export_model(place / "classifier.safetensors", ExportSpec(output=place / "onnx", dynamic_batch=True))


@torch.no_grad()
def test_file_contract_report_and_golden_vectors_speak_of_classes(folder, convolutional):
    session = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    images = pixels(PIXELS)[:3]
    (logits,) = map(torch.from_numpy, session.run(["logits"], {"pixels": images.numpy()}))
    torch.testing.assert_close(logits, convolutional(images), rtol=1e-4, atol=1e-4)
    contract = json.loads((folder / "mobileclip.json").read_text())
    assert (contract["num_classes"], contract["class_names"]) == (3, list(NAMES))
    assert (contract["embedding_dim"], contract["normalize"]) == (convolutional.spec.image.embedding_dim, False)
    (tower,) = contract["towers"]
    assert (tower["output_name"], tower["output_shape"]) == ("logits", [None, 3])
    report = verify_export(folder)
    assert report == read_report(folder)
    assert report.passed
    assert (report.ranking.kind, report.ranking.num_queries) == ("classes", 12)
    assert "image logits with NaN or infinity" in {check.name for check in report.checks}
    golden = load_file(folder / "golden.safetensors")
    torch.testing.assert_close(golden["logits"], convolutional(golden["pixels"]), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_vision_transformer_computes_one_token(tmp_path):
    model, images = classifier(attrs.evolve(VIT, embedding_dim=8)), pixels(PIXELS)[:1]
    export_model(model, ExportSpec(output=tmp_path / "out", target="torch"))
    assert read_report(tmp_path / "out").passed
    program = torch.export.load(tmp_path / "out" / "image.pt2")
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("target", ["executorch", "onnx", "openvino", "torch"])
def test_every_target_in_float32_and_int8(convolutional, tmp_path, target, precision):
    export_model(convolutional, ExportSpec(output=tmp_path / "out", target=target, precision=precision))
    report = verify_export(tmp_path / "out", trust=True)
    assert report.passed, report.failures
    assert report.ranking.kind == "classes"


@pytest.mark.slow
def test_the_command_and_the_image_tower_alone(capsys, folder, convolutional, tmp_path):
    file = folder.parent / "classifier.safetensors"
    said = worked(capsys, "export", file, "-o", tmp_path / "whole")
    assert "ranking: 100.00% of 12 first results agree with float32" in said
    worked(capsys, "export", file, "-o", tmp_path / "tower", "--tower", "image", "--features", "1")
    contract = read_contract(tmp_path / "tower")
    assert (contract.of_classes, contract.class_names, contract.normalize) == (False, (), True)
    assert contract.output_dim == convolutional.spec.image.embedding_dim
    assert json.loads((tmp_path / "tower" / "mobileclip.json").read_text())["num_classes"] is None


@pytest.mark.parametrize("options", [{"tower": "text"}, {"features": (0,)}])
def test_what_a_classifier_has_not(convolutional, tmp_path, options):
    with fails(ValueError):
        export_model(convolutional, ExportSpec(output=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_a_contract_that_is_not_true_of_its_classes_is_refused(folder, tmp_path):
    whole = (folder / "mobileclip.json").read_text()
    copied = shutil.copytree(folder, tmp_path / "copied")
    wrong = ({"num_classes": 4}, {"num_classes": 0, "class_names": []}, {"class_names": ["cat"]})
    for changes in (*wrong, {"num_classes": None}, {"normalize": True}):
        (copied / "mobileclip.json").write_text(whole)
        change(copied, lambda contract, changes=changes: contract.update(changes))
        with fails(ValueError):
            read_contract(copied)


def test_the_largest_logit_decides_the_ranking():
    reference = torch.eye(4)
    for logits, agreement in ((reference * 2 - 3, 1.0), (reference.roll(1, 1), 0.0)):
        found = compare_rankings({"image": logits}, {"image": reference}, of_classes=True)
        assert (found.kind, found.num_queries, found.agreement) == ("classes", 4, agreement)

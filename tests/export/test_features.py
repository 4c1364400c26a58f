"""Feature maps beside the embeddings: the runtimes' own, against the model's, and what is refused."""

import json
import shutil

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mobileclip
from mobileclip.encoders import ImageEncoderSpec
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract, read_report, verify_export
from tests.errors import fails
from tests.export.hostile_folders import change, failed, sign
from tests.export.models import MCI, PIXELS, VIT, pixels


def with_maps(model, out, **options):
    spec = ExportSpec(output=out, **{"tower": "image", "features": (1, 0), **options})
    return export_model(model, spec)


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """Maps of a vision transformer, whose layers all have the same shape; the last one's, so that it computes whole."""
    return with_maps(transformers.image_encoder, tmp_path_factory.mktemp("features") / "onnx", dynamic_batch=True)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def change_graph(folder, edit):
    """Edit the image tower of an export, and sign it."""
    model = onnx.load(folder / "image.onnx")
    edit(model.graph)
    onnx.save(model, folder / "image.onnx")
    sign(folder)


@torch.no_grad()
def test_file_contract_report_and_golden_vectors_speak_of_maps_in_the_order_asked_for(folder, transformers):
    session = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["image_embedding", "stage_1", "stage_0"]
    images = pixels(PIXELS)[:3]
    embedding, *maps = map(torch.from_numpy, session.run(None, {"pixels": images.numpy()}))
    torch.testing.assert_close(embedding, transformers.encode_image(images, normalize=True), rtol=1e-4, atol=1e-5)
    expected = transformers.image_encoder.features(images, (1, 0))
    torch.testing.assert_close(tuple(maps), expected, rtol=1e-4, atol=1e-4)
    (tower,) = json.loads((folder / "mobileclip.json").read_text())["towers"]
    assert tower["output_name"] == "image_embedding"
    assert tower["features"] == [{"stage": stage, "shape": [None, 16, 4, 4]} for stage in (1, 0)]
    report = read_report(folder)
    assert report.passed
    assert [(parity.stage, parity.count) for parity in report.towers] == [(None, 12), (1, 12), (0, 12)]
    assert "image stage_0 cosine, minimum" in {check.name for check in report.checks}
    assert verify_export(folder) == report
    golden = load_file(folder / "golden.safetensors")
    expected = transformers.image_encoder.features(golden["pixels"], (0,))[0]
    torch.testing.assert_close(golden["stage_0"], expected, rtol=1e-4, atol=1e-4)


SLOW = [pytest.param(target, marks=pytest.mark.slow) for target in ("openvino", "executorch", "onnx")]


@pytest.mark.parametrize("target", ["torch", *SLOW])
def test_every_target_gives_them(convolutional, target, tmp_path):
    folder = with_maps(convolutional.image_encoder, tmp_path / "out", target=target)
    assert read_report(folder).passed, read_report(folder).failures
    (tower,) = read_contract(folder).towers
    assert tower.outputs == {"image_embedding": (1, 12), "stage_1": (1, 16, 8, 8), "stage_0": (1, 8, 16, 16)}


@pytest.mark.parametrize("target", ["onnx", pytest.param("torch", marks=pytest.mark.slow), SLOW[0]])
def test_an_export_with_the_embedding_of_each_place_explains(target, tmp_path):
    spec = ExportSpec(output=tmp_path / "out", target=target, features=("text-space",))
    folder = export_model("icons", spec, show_progress=False)
    report = read_report(folder)
    assert report.passed, report.failures
    (error,) = (one.mean_error for one in report.towers if one.stage == "text-space")
    assert error < 1e-5
    clip, opened = mobileclip.load("icons"), mobileclip.load(folder)
    picture, texts = bundled_samples().images[0], ["a cat", "a red bicycle"]
    maps = opened.explain(picture, texts)
    torch.testing.assert_close(maps, clip.explain(picture, texts), rtol=1e-3, atol=1e-5)
    scores = opened.encode_image(picture) @ opened.encode_text(texts).T
    torch.testing.assert_close(maps.sum((1, 2)), scores[0], rtol=0, atol=1e-5)


def test_maps_whose_mean_is_another_embedding_fail(tmp_path):
    model = mobileclip.load("icons").model.image_encoder
    folder = with_maps(model, tmp_path / "out", features=("text-space",))

    def double(graph):
        (last,) = (node for node in graph.node if "text_space" in node.output)
        last.output[list(last.output).index("text_space")] = "half"
        graph.node.append(onnx.helper.make_node("Sum", ["half", "half"], ["text_space"]))

    change_graph(folder, double)
    assert "image text_space mean over positions, distance from the embedding" in failed(verify_export(folder))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("target", ["onnx", "openvino", "executorch"])
def test_every_target_gives_them_in_fewer_bits(transformers, target, precision, tmp_path):
    folder = with_maps(transformers.image_encoder, tmp_path / "out", target=target, precision=precision)
    maps = [parity for parity in read_report(folder).towers if parity.stage is not None]
    assert all(0.98 < parity.cosine_minimum < 1 - 1e-9 for parity in maps)


def test_maps_in_each_others_place_fail_the_checks(copied):
    def exchange(graph):
        other = {"stage_0": "stage_1", "stage_1": "stage_0"}
        for node in graph.node:
            node.input[:] = [other.get(name, name) for name in node.input]
            node.output[:] = [other.get(name, name) for name in node.output]

    change_graph(copied, exchange)
    names = failed(verify_export(copied))
    assert {"image stage_0 cosine, minimum", "image stage_1 cosine, minimum"} <= names
    assert "image cosine, minimum" not in names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": 0}, []),
        ({"shape": [1, 16, 4, 4]}, ["stage_1", "(1, 16, 4, 4)"]),
        ({"shape": [None, 16]}, ["stage_1", "(None, 16)"]),
        ({"shape": [None, 17, 4, 4]}, ["stage_1", "float32"]),
    ],
)
def test_contracts_that_do_not_fit_the_maps_are_refused(copied, changes, words):
    change(copied, lambda contract: contract["towers"][0]["features"][0].update(changes))
    with fails(ValueError, *words):
        verify_export(copied)


@pytest.mark.parametrize(("kept", "words"), [(0, ["stage_0", "float32"]), (3, ["3", "stage_0", "12"])])
def test_fewer_stored_maps_than_pictures_are_refused(copied, kept, words):
    tensors = load_file(copied / "evaluation.safetensors")
    maps = tensors.pop("image.stage_0")
    save_file(tensors | ({"image.stage_0": maps[:kept].clone()} if kept else {}), copied / "evaluation.safetensors")
    sign(copied)
    with fails(ValueError, *words):
        verify_export(copied)


class PlainSpec(ImageEncoderSpec):
    def build(self):
        encoder = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, self.embedding_dim))
        encoder.spec = self
        return encoder


def test_features_that_nobody_gives_are_refused_before_the_work(tmp_path):
    for spec, options, words in (
        (MCI, {"features": (0, 7)}, ["1", "[7]"]),
        (PlainSpec(input=PIXELS), {"features": (0,)}, ["Sequential"]),
        (MCI, {"tower": "text"}, []),
        (MCI, {"features": (1, 1)}, []),
        (VIT, {"features": ("text-space",)}, ["ViT"]),
    ):
        with fails(ValueError, *words):
            with_maps(spec.build().eval(), tmp_path / "out", target="torch", **options)
    assert not list(tmp_path.iterdir())

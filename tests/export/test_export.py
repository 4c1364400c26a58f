"""What an export holds, checked with the runtimes themselves and with the model that it was made of."""

import json
from pathlib import Path

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers
import torch
from safetensors.torch import load_file

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.encoders import TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.export import (
    ExportSpec,
    Samples,
    bundled_samples,
    export_model,
    read_contract,
    read_report,
    targets,
    verify_export,
)
from mobileclip.export.export import origin_of, tower_export
from mobileclip.inputs import TextInput
from mobileclip.tensor_files import weights_sha256
from tests.encoders.small import randomised
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, MCI, PIXELS, TOKENS, pixels, raw_pixels


def run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: np.asarray(inputs)})[0])


@torch.no_grad()
def test_onnx_gives_the_models_embeddings(plain_onnx, convolutional):
    images, texts = pixels(PIXELS), Tokenizer(TOKENS)(["a cat", "two dogs on a beach"])
    ours = torch.cat([run(plain_onnx / "image.onnx", image[None]) for image in images])
    torch.testing.assert_close(ours, convolutional.encode_image(images, normalize=True), rtol=1e-4, atol=1e-5)
    ours = torch.cat([run(plain_onnx / "text.onnx", text[None]) for text in texts])
    torch.testing.assert_close(ours, convolutional.encode_text(texts, normalize=True), rtol=1e-4, atol=1e-5)


def test_onnx_holds_no_paths_and_source_lines_of_whoever_exported(plain_onnx):
    nodes = [node for tower in ("image", "text") for node in onnx.load(plain_onnx / f"{tower}.onnx").graph.node]
    assert not any(node.doc_string or node.metadata_props for node in nodes)


def test_masks_are_within_half_precision(half_onnx, plain_torch):
    """The causal mask is the only large constant of a tower; -inf or -3.4e38 would be found here."""
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(half_onnx / "text.onnx").graph.initializer]
    floats = [array for array in constants if array.dtype.kind == "f" and array.size]
    assert {array.dtype.name for array in floats if array.size > 100} == {"float16"}
    assert all(np.isfinite(array).all() and abs(array).max() <= 1e4 for array in floats)
    program = torch.export.load(plain_torch / "text.pt2")
    assert not any("inf" in str(node.args) for node in program.graph.nodes)


@pytest.mark.parametrize("target", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_bfloat16(convolutional, tmp_path, target):
    options = {"precision": "bfloat16", "preprocess": "float32", "normalize": False}
    folder = export_model(convolutional, ExportSpec(output=tmp_path / "out", target=target, tower="image", **options))
    (image,) = read_contract(str(folder)).towers
    assert image.compute == {"onnx": "float32", "torch": "bfloat16"}[target]
    assert image.input_dtype == "float32"
    (parity,) = verify_export(folder).towers
    assert 0.999 < parity.cosine_minimum < 1 - 1e-7, "bfloat16 is near float32, and not the same"
    if target == "onnx":
        ours = run(folder / "image.onnx", raw_pixels(PIXELS)[:1].float())
        rounded = reparameterize(convolutional).image_encoder
        with torch.no_grad():
            for parameter in rounded.parameters():
                if sum(side > 1 for side in parameter.shape) > 1:
                    parameter.copy_(parameter.bfloat16().float())
            torch.testing.assert_close(ours, rounded(pixels(PIXELS)[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("target", "split"), [("torch", True), ("executorch", False)])
def test_convolutions_are_depthwise_where_the_runtime_is_faster_so(convolutional, target, split):
    samples = bundled_samples()
    spec = ExportSpec(output="unused", target=target, tower="image")
    encoder = reparameterize(convolutional).image_encoder
    export = tower_export("image", encoder, spec, targets.resolve(target), calibration=samples)
    convs = [module for module in export.encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(conv.groups in (1, conv.out_channels) for conv in convs) is split
    assert len(convs) == sum(isinstance(module, torch.nn.Conv2d) for module in encoder.modules()) + 2 * split


@pytest.mark.parametrize(
    ("model", "checkpoint", "name", "licence"),
    [
        ("mobileclip_s0", None, "mobileclip_s0", "apple-ascl"),
        ("mobileclip_b", None, "mobileclip_b", "apple-amlr"),
        ("mobileclip_s0", "mine.pt", "mobileclip_s0", "the authors of the weights"),
        (PRETRAINED["mobileclip_s0"], None, "apple/MobileCLIP-S0", "apple-ascl"),
        ("hf-hub:me/mine", None, "me/mine", "the authors of the weights"),
        (Path("folder/mine.safetensors"), None, "mine", "the authors of the weights"),
        ("icons", None, "icons", "code and weights MIT"),
    ],
)
def test_a_name_says_whose_weights_they_are(model, checkpoint, name, licence):
    origin = origin_of(model, checkpoint)
    assert licence in origin.licence
    assert origin.name == name
    place = PRETRAINED.get(str(model), str(model))
    repository = "/".join(place.removeprefix("hf-hub:").split("/")[:2])
    assert origin.base_model == (repository if checkpoint is None and place.startswith("hf-hub:") else None)
    told = {"the authors of the weights": "other", "code and weights MIT": "mit"}
    assert origin.hub_licence == told.get(licence, licence)


def test_contract_says_what_goes_in(plain_onnx, half_onnx, convolutional):
    contract = json.loads((plain_onnx / "mobileclip.json").read_text())
    assert contract["image"]["input"] | {"size": 64, "std": list(PIXELS.std)} == contract["image"]["input"]
    assert (contract["image"]["channel_order"], contract["image"]["layout"]) == ("RGB", "NCHW")
    assert (contract["text"]["start_id"], contract["text"]["end_id"]) == (598, 599)
    assert contract["logit_scale"] == pytest.approx(float(convolutional.logit_scale.detach().exp()))
    assert contract["weights_sha256"] == weights_sha256(reparameterize(convolutional).state_dict())
    assert contract["versions"]["onnxruntime"] == onnxruntime.__version__
    image, text = contract["towers"]
    assert (image["input_shape"], image["output_shape"]) == ([1, 3, 64, 64], [1, 12])
    assert (text["input_name"], text["input_dtype"], text["input_shape"]) == ("tokens", "int64", [1, 12])
    image, _ = read_contract(half_onnx).towers
    assert (image.input_dtype, image.compute) == ("uint8", "float16")


def test_tokenizer_file_gives_whole_rows(plain_onnx):
    stored = tokenizers.Tokenizer.from_file(str(plain_onnx / "tokenizer.json"))
    texts = ["a cat", "", "a text that is a good deal longer than twelve tokens can ever hold"]
    assert [stored.encode(text).ids for text in texts] == Tokenizer(TOKENS)(texts).tolist()


@torch.no_grad()
def test_golden_vectors_are_what_the_files_take_and_the_model_gives(plain_onnx, half_onnx, convolutional):
    golden = load_file(plain_onnx / "golden.safetensors")
    torch.testing.assert_close(golden["pixels"], pixels(PIXELS)[:4], rtol=0, atol=0)
    expected = convolutional.encode_image(golden["pixels"], normalize=True)
    torch.testing.assert_close(golden["image_embedding"], expected, rtol=1e-4, atol=1e-5)
    assert golden["tokens"].tolist() == Tokenizer(TOKENS)(list(bundled_samples().captions[:4])).tolist()
    golden = load_file(half_onnx / "golden.safetensors")
    torch.testing.assert_close(golden["pixels"], raw_pixels(PIXELS)[:4], rtol=0, atol=0)


def test_report_names_what_it_was_measured_on(plain_onnx):
    report = read_report(plain_onnx)
    assert report.passed
    assert report.data == "bundled"
    assert report.image_names == bundled_samples().image_names
    assert report.captions == bundled_samples().captions
    assert report.ranking.kind == "image-text"
    assert report.ranking.num_queries == 12 + 24
    assert [tower.count for tower in report.towers] == [12, 24]
    assert all(tower.cosine_minimum > 0.99999 for tower in report.towers)


def test_a_file_of_a_tower_alone_is_enough(convolutional, tmp_path):
    save_model(convolutional.image_encoder, tmp_path / "tower.safetensors")
    spec = ExportSpec(output=tmp_path / "out", target="torch")
    folder = export_model(tmp_path / "tower.safetensors", spec)
    contract, report = read_contract(folder), read_report(folder)
    assert contract.logit_scale is None
    assert contract.text is None
    assert report.ranking.kind == "neighbours"
    assert report.ranking.num_queries == 12
    loaded = load_model(tmp_path / "tower.safetensors")
    assert contract.weights_sha256 == weights_sha256(loaded.state_dict())
    with fails(ValueError, "text", "image"):
        export_model(loaded, ExportSpec(output=tmp_path / "none", target="torch", tower="text"))


@pytest.mark.parametrize("target", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_text_tower_alone_is_exported_at_its_own_context(target, tmp_path):
    text = TextInput(context_length=6, vocab_size=900)
    tower = randomised(TextTransformerSpec(width=16, num_heads=2, depth=0, embedding_dim=24, pool="mean", input=text))
    save_model(tower, tmp_path / "tower.safetensors")
    folder = export_model(tmp_path / "tower.safetensors", ExportSpec(output=tmp_path / "out", target=target))
    contract, report = read_contract(folder), read_report(folder)
    assert [file.tower for file in contract.towers] == ["text"]
    assert contract.towers[0].input_shape[1] == contract.text.input.context_length == 6
    assert report.passed
    assert report.towers[0].count == len(bundled_samples().captions)
    assert verify_export(folder).passed
    golden = load_file(folder / "golden.safetensors")
    assert {rows.shape[-1] for rows in golden.values()} == {6, 24}


def test_mistakes_cost_nothing(convolutional, tmp_path, monkeypatch):
    with fails(ValueError, "did you mean 'onnx'"):
        export_model(convolutional, ExportSpec(output=tmp_path / "out", target="onxx"))
    with fails(ValueError, "mci0", "models with published weights"):
        export_model("mci0", ExportSpec(output=tmp_path / "out"))
    with fails(ValueError, "precision"):
        ExportSpec(output=tmp_path / "out", precision="int4")
    with fails(ValueError):
        export_model(CONVOLUTIONAL.build().train(), ExportSpec(output=tmp_path / "out", target="torch"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with fails(FileExistsError):
        export_model(convolutional, ExportSpec(output=tmp_path / "full"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with fails(ValueError, "out"):
        export_model(convolutional, ExportSpec(output="."))
    assert list(tmp_path.glob("empty/.*")) == []


def test_images_that_cannot_be_read_are_counted(convolutional, tmp_path):
    torn = Samples(name="torn", image_names=("a", "b"), images=(b"no", b"no"), captions=("a cat", "a dog"))
    one, two = bundled_samples().images[:2]
    samples = attrs.evolve(torn, image_names=("one", "torn", "two"), images=(one, b"\xff\xd8\xff", two))
    spec = ExportSpec(output=tmp_path / "out", target="torch", tower="image")
    # Where no ranges are to be found, nothing is read that they would be found with.
    report = read_report(export_model(convolutional, spec, samples=samples, calibration=torn))
    assert report.image_names == ("one", "two")
    assert sum(report.skipped.values()) == 1
    assert report.towers[0].count == 2
    with fails(ValueError, "0", "2", "torn"):
        export_model(MCI.build().eval(), attrs.evolve(spec, output=tmp_path / "none"), samples=torn)
    with fails(ValueError):
        attrs.evolve(torn, captions=("a cat", "a cat"))

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
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract, read_report, verify_export
from mobileclip.export.export import origin_of, tower_export
from mobileclip.export.targets import targets
from mobileclip.inputs import TextInput
from mobileclip.tensor_files import weights_sha256
from tests.encoders.small import randomised
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, MCI, PIXELS, TOKENS, pixels, raw_pixels, seeing


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


def test_onnx_holds_no_source_lines_of_whoever_exported_and_masks_within_half_precision(
    plain_onnx, half_onnx, plain_torch
):
    """The causal mask is the only large constant of a tower; -inf or -3.4e38 would be found here."""
    nodes = [node for tower in ("image", "text") for node in onnx.load(plain_onnx / f"{tower}.onnx").graph.node]
    assert not any(node.doc_string or node.metadata_props for node in nodes)
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(half_onnx / "text.onnx").graph.initializer]
    floats = [array for array in constants if array.dtype.kind == "f" and array.size]
    assert {array.dtype.name for array in floats if array.size > 100} == {"float16"}
    assert all(np.isfinite(array).all() and abs(array).max() <= 1e4 for array in floats)
    program = torch.export.load(plain_torch / "text.pt2")
    assert not any("inf" in str(node.args) for node in program.graph.nodes)


@pytest.mark.parametrize("target", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
@torch.no_grad()
def test_bfloat16(convolutional, tmp_path, target):
    options = {"precision": "bfloat16", "preprocess": "float32", "normalize": False}
    folder = export_model(convolutional, ExportSpec(output=tmp_path / "out", target=target, tower="image", **options))
    (image,) = read_contract(str(folder)).towers
    assert (image.compute, image.input_dtype) == ({"onnx": "float32", "torch": "bfloat16"}[target], "float32")
    (parity,) = verify_export(folder).towers
    assert 0.999 < parity.cosine_minimum < 1 - 1e-7, "bfloat16 is near float32, and not the same"
    if target == "onnx":
        ours = run(folder / "image.onnx", raw_pixels(PIXELS)[:1].float())
        rounded = reparameterize(convolutional).image_encoder
        for parameter in rounded.parameters():
            if sum(side > 1 for side in parameter.shape) > 1:
                parameter.copy_(parameter.bfloat16().float())
        torch.testing.assert_close(ours, rounded(pixels(PIXELS)[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("target", "split"), [("torch", True), ("executorch", False)])
def test_convolutions_are_depthwise_where_the_runtime_is_faster_so(convolutional, target, split):
    spec, encoder = ExportSpec(output="unused", target=target), reparameterize(convolutional).image_encoder
    export = tower_export("image", encoder, spec, targets.resolve(target), calibration=bundled_samples())
    convs, before = (
        [module for module in tower.modules() if isinstance(module, torch.nn.Conv2d)]
        for tower in (export.encoder, encoder)
    )
    assert all(conv.groups in (1, conv.out_channels) for conv in convs) is split
    assert len(convs) == len(before) + 2 * split


OTHERS = "the licence that their authors chose"


@pytest.mark.parametrize(
    ("model", "checkpoint", "name", "licence", "base_model"),
    [
        ("mobileclip_s0", None, "mobileclip_s0", "apple-ascl", "apple/MobileCLIP-S0"),
        ("mobileclip_b", None, "mobileclip_b", "apple-amlr", "apple/MobileCLIP-B"),
        ("mobileclip_s0", "mine.pt", "mobileclip_s0", OTHERS, None),
        (PRETRAINED["mobileclip_s0"], None, "apple/MobileCLIP-S0", "apple-ascl", "apple/MobileCLIP-S0"),
        ("hf-hub:me/mine", None, "me/mine", OTHERS, "me/mine"),
        (Path("folder/mine.safetensors"), None, "mine", OTHERS, None),
        ("icons", None, "icons", "code and weights MIT", None),
    ],
)
def test_a_name_says_whose_weights_they_are(model, checkpoint, name, licence, base_model):
    origin = origin_of(model, checkpoint)
    assert licence in origin.licence
    hub_licence = {OTHERS: "other", "code and weights MIT": "mit"}.get(licence, licence)
    assert (origin.name, origin.base_model, origin.hub_licence) == (name, base_model, hub_licence)


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


@torch.no_grad()
def test_tokenizer_golden_vectors_and_report_are_of_what_the_files_take_and_the_model_gives(
    plain_onnx, half_onnx, convolutional
):
    stored = tokenizers.Tokenizer.from_file(str(plain_onnx / "tokenizer.json"))
    texts = ["a cat", "", "a text that is a good deal longer than twelve tokens can ever hold"]
    assert [stored.encode(text).ids for text in texts] == Tokenizer(TOKENS)(texts).tolist()
    golden, samples = load_file(plain_onnx / "golden.safetensors"), bundled_samples()
    assert golden["pixels"].equal(pixels(PIXELS)[:4])
    expected = convolutional.encode_image(golden["pixels"], normalize=True)
    torch.testing.assert_close(golden["image_embedding"], expected, rtol=1e-4, atol=1e-5)
    assert golden["tokens"].tolist() == Tokenizer(TOKENS)(list(samples.captions[:4])).tolist()
    assert load_file(half_onnx / "golden.safetensors")["pixels"].equal(raw_pixels(PIXELS)[:4])
    report = read_report(plain_onnx)
    assert (report.passed, report.data, report.image_names) == (True, "bundled", samples.image_names)
    assert report.captions == samples.captions
    assert (report.ranking.kind, report.ranking.num_queries) == ("image-text", 12 + 24)
    assert [tower.count for tower in report.towers] == [12, 24]
    assert all(tower.cosine_minimum > 0.99999 for tower in report.towers)


def test_a_file_of_a_tower_alone_is_enough(convolutional, tmp_path):
    save_model(convolutional.image_encoder, tmp_path / "tower.safetensors")
    folder = export_model(tmp_path / "tower.safetensors", ExportSpec(output=tmp_path / "out", target="torch"))
    contract, report, loaded = read_contract(folder), read_report(folder), load_model(tmp_path / "tower.safetensors")
    assert (contract.logit_scale, contract.text) == (None, None)
    assert (report.ranking.kind, report.ranking.num_queries) == ("neighbours", 12)
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
    assert {rows.shape[-1] for rows in load_file(folder / "golden.safetensors").values()} == {6, 24}


def test_mistakes_cost_nothing(convolutional, tmp_path, monkeypatch):
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "empty")
    for model, options, error, words in (
        (convolutional, {"target": "onxx"}, ValueError, ["did you mean 'onnx'"]),
        ("mci0", {}, ValueError, ["mci0", "models with published weights"]),
        (CONVOLUTIONAL.build().train(), {"target": "torch"}, ValueError, []),
        (convolutional, {"output": tmp_path / "full"}, FileExistsError, []),
        (convolutional, {"output": "."}, ValueError, ["out"]),
    ):
        with fails(error, *words):
            export_model(model, ExportSpec(**{"output": tmp_path / "out", **options}))
    with fails(ValueError, "precision"):
        ExportSpec(output=tmp_path / "out", precision="int4")
    assert {path.name for path in tmp_path.rglob("*")} == {"full", "notes.txt", "empty"}


def test_images_that_cannot_be_read_are_counted(convolutional, tmp_path):
    one, two = bundled_samples().images[:2]
    captions = ("a cat", "a dog")
    torn = attrs.evolve(bundled_samples(), name="torn", image_names=("a", "b"), images=(b"no",) * 2, captions=captions)
    samples = attrs.evolve(torn, image_names=("one", "torn", "two"), images=(one, b"\xff\xd8\xff", two))
    spec = ExportSpec(output=tmp_path / "out", target="torch", tower="image")
    # Where no ranges are to be found, nothing is read that they would be found with.
    report = read_report(export_model(convolutional, spec, samples=samples, calibration=torn))
    assert (report.image_names, sum(report.skipped.values()), report.towers[0].count) == (("one", "two"), 1, 2)
    with fails(ValueError, "0", "2", "torn"):
        export_model(MCI.build().eval(), attrs.evolve(spec, output=tmp_path / "none"), samples=torn)
    with fails(ValueError):
        attrs.evolve(torn, captions=("a cat", "a cat"))


@pytest.mark.gpu
def test_a_model_that_was_trained_on_a_gpu_becomes_the_same_files_and_stays_there(gpu, tmp_path):
    model, images = seeing(CONVOLUTIONAL).to(gpu).train(), pixels(PIXELS)[:4]
    texts = torch.randint(1, 600, (4, 12), generator=torch.Generator().manual_seed(0)).to(gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        similarities = model.encode_image(images.to(gpu)) @ model.encode_text(texts).T
        torch.nn.functional.cross_entropy(similarities, torch.arange(4, device=gpu)).backward()
        optimizer.step()
    folder = export_model(model.eval(), ExportSpec(output=tmp_path / "export", target="torch"))
    assert verify_export(folder).passed
    assert {parameter.device.type for parameter in model.parameters()} == {gpu.type}
    save_model(model, tmp_path / "trained.safetensors")
    with torch.inference_mode():
        expected = model.double().encode_image(images.to(gpu).double()).cpu().float()
        found = load_model(tmp_path / "trained.safetensors").encode_image(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

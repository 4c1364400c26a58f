"""Exports laid out for the places where people run CLIP: the names there, what lies beside, and the same embeddings."""

import json
import shutil
import subprocess
from pathlib import Path

import attrs
import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch
from PIL import Image
from torch.nn import functional as F

import mobileclip
from mobileclip import reparameterize
from mobileclip.data import ImageTransform, Tokenizer, load_image
from mobileclip.export import bundled_samples, layouts, read_contract, read_report, verify_export
from mobileclip.export.towers import ensure_end_token
from mobileclip.inputs import TextInput
from tests.browser import CHROMIUM, open_page
from tests.errors import fails
from tests.examples.web import NPM, OFFLINE, run_npm, served
from tests.export.hostile_folders import change
from tests.export.models import CAUSAL, CONVOLUTIONAL, PIXELS, SHALLOW, TOKENS, exported, seeing

TEXTS = ("a cat", "a dog", "a beach", "a boat", "a red cup", "two birds", "a text of more words than the model reads")
PACKAGE = "@huggingface/transformers@4.3.1"


@pytest.fixture(scope="module")
def model():
    return reparameterize(seeing(SHALLOW))


@pytest.fixture(scope="module")
def immich(tmp_path_factory):
    return exported(seeing(SHALLOW), tmp_path_factory.mktemp("layouts") / "immich", layout="immich")


def content(path):
    return json.loads(path.read_text())


@torch.no_grad()
def test_immich_gets_the_models_embeddings(immich, model):
    """Prepared as it does: padded and cut by the configurations, one input at a time, ids in 32 bits."""
    prepared, config = content(immich / "visual" / "preprocess_cfg.json"), content(immich / "config.json")
    assert (prepared["size"], prepared["interpolation"]) == ([PIXELS.size, PIXELS.size], PIXELS.interpolation)
    assert (prepared["mean"], prepared["std"]) == (list(PIXELS.mean), list(PIXELS.std))
    assert (config["text_cfg"]["context_length"], config["embed_dim"]) == (TOKENS.context_length, 12)
    pad = content(immich / "textual" / "tokenizer_config.json")["pad_token"]
    tokenizer = tokenizers.Tokenizer.from_file(str(immich / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=12, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=12)
    text = onnxruntime.InferenceSession(immich / "textual" / "model.onnx")
    for caption in bundled_samples().captions[:3]:
        (given,) = text.run(None, {"text": np.array([tokenizer.encode(caption).ids], dtype=np.int32)})
        expected = model.encode_text(Tokenizer(TOKENS)([caption]), normalize=True)
        np.testing.assert_allclose(given, expected, atol=1e-5)
    pixels = ImageTransform(PIXELS)(load_image(bundled_samples().images[0]))[None]
    (given,) = onnxruntime.InferenceSession(immich / "visual" / "model.onnx").run(None, {"image": pixels.numpy()})
    np.testing.assert_allclose(given, model.encode_image(pixels, normalize=True), atol=1e-5)


@torch.no_grad()
def test_a_layout_stays_an_export(immich, model, tmp_path):
    assert verify_export(immich) == read_report(immich)
    assert read_contract(immich).layout == "immich"
    loaded, ids = mobileclip.load(immich).model, Tokenizer(TOKENS)(["a cat", "a dog"])
    expected = model.encode_text(ids, normalize=True)
    torch.testing.assert_close(loaded.encode_text(ids, normalize=True), expected, atol=1e-5, rtol=0)
    assert not torch.equal(loaded.image_encoder.files_sha256, loaded.text_encoder.files_sha256), "each by its own files"
    copied = shutil.copytree(immich, tmp_path / "copied")
    (copied / "textual" / "tokenizer_config.json").write_text("{}")
    with fails(ValueError, "tokenizer_config.json"):
        verify_export(copied)
    elsewhere = shutil.copytree(immich, tmp_path / "elsewhere")
    change(elsewhere, lambda contract: contract["text"].update(tokenizer="/etc/hostname"))
    with fails(ValueError, "/etc/hostname"):
        mobileclip.load(elsewhere)


@pytest.mark.slow
def test_layers_that_stay_in_float32_are_tried_in_a_folder_that_both_towers_share(tmp_path):
    folder = exported(seeing(CONVOLUTIONAL), tmp_path / "out", layout="transformers.js", precision="int8")
    assert {path.name for path in (folder / "onnx").iterdir()} == {"text_model_int8.onnx", "vision_model_int8.onnx"}
    assert verify_export(folder) == read_report(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "openvino"}, ["transformers.js", "openvino"]),
        ({"preprocess": "uint8"}, []),
        ({"precision": "bfloat16"}, ["transformers.js", "bfloat16", "float32, float16"]),
        ({"layout": "immich", "features": (0,)}, []),
        ({"layout": "immic"}, ["immich"]),
        ({"layout": "ultralytics"}, ["ultralytics"]),
        ({"layout": "ultralytics", "target": "torch", "tower": "image"}, ["ultralytics"]),
    ],
)
def test_what_a_place_does_not_run_is_refused(options, words, tmp_path):
    with fails(ValueError, *words):
        exported(seeing(SHALLOW), tmp_path / "out", **{"layout": "transformers.js", **options})
    assert not list(tmp_path.iterdir())


def test_the_contract_names_a_background_and_is_warned_of_where_the_host_does_not_know_it(immich, tmp_path, caplog):
    folder = shutil.copytree(immich, tmp_path / "out")
    change(folder, lambda contract: contract["image"]["input"].update(background="white"))
    for layout in ("immich", "transformers.js"):
        caplog.clear()
        layouts.resolve(layout).write(folder, read_contract(folder))
        assert "was trained with transparent images on white" in caplog.text
    white = attrs.evolve(SHALLOW.image, input=attrs.evolve(PIXELS, background="white"))
    model = seeing(attrs.evolve(SHALLOW, image=white)).image_encoder
    folder = exported(model, tmp_path / "white", target="torch", tower="image")
    assert read_contract(folder).image.input.background == "white"


def test_cut_rows_are_ended():
    rows = torch.tensor([[1, 5, 9, 0], [1, 5, 6, 9], [1, 5, 6, 7], [9, 9, 9, 9]])
    assert ensure_end_token(rows, 9).tolist() == [[1, 5, 9, 0], [1, 5, 6, 9], [1, 5, 6, 9], [9, 9, 9, 9]]


def test_transformers_js_finds_what_it_reads_beside_the_towers(immich, tmp_path):
    """Whatever the layout, the contract says the same: what is written of another layout's is what an export has."""
    contract, folder = read_contract(immich), shutil.copytree(immich, tmp_path / "out")
    layouts.resolve("transformers.js").write(folder, contract)
    for name, expected in (
        ("preprocessor_config", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("preprocessor_config", {"image_mean": list(PIXELS.mean), "image_std": list(PIXELS.std)}),
        ("preprocessor_config", {"rescale_factor": pytest.approx(1 / 255)}),
        ("config", {"model_type": "clip", "projection_dim": 12}),
        ("config", {"logit_scale_init_value": pytest.approx(float(np.log(contract.logit_scale)))}),
        ("tokenizer_config", {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS.context_length}),
    ):
        assert {key: content(folder / f"{name}.json")[key] for key in expected} == expected


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with transformers.js, and with what uses it in Node and in a page."""
    if NPM is None:
        pytest.skip("no npm on this machine: apt-get install npm")
    folder = tmp_path_factory.mktemp("package")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    for name in ("transformers_js.mjs", "transformers_js.html"):
        shutil.copy(Path(__file__).with_name(name), folder)
    installed = run_npm(folder, "install", PACKAGE, "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts")
    if installed.returncode and any(word in installed.stderr for word in OFFLINE):
        pytest.skip("the npm registry cannot be reached")
    assert installed.returncode == 0, installed.stderr
    return folder


def in_node(package, asked):
    """What transformers.js gives in Node."""
    script = 'import { encode } from "./transformers_js.mjs"; import { readFileSync } from "node:fs";'
    script += 'process.stdout.write(JSON.stringify(await encode(JSON.parse(readFileSync(0, "utf8")))));'
    if (node := shutil.which("node")) is None:
        pytest.skip("no Node.js on this machine: apt-get install nodejs")
    asked = json.dumps({**asked, "device": "cpu", "folder": str(package / asked["folder"])})
    command = [node, "--input-type=module", "--eval", script]
    run = subprocess.run(command, cwd=package, input=asked, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def in_chromium(package, asked):
    """What transformers.js gives in a page, with WebAssembly."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with served(package) as address, open_page(f"{address}transformers_js.html", width=800) as page:
        page.wait_for("Boolean(window.start)")
        page.evaluate(f"start({json.dumps({**asked, 'device': 'wasm'})})")
        given = page.wait_for("window.answer", seconds=300)
    assert "error" not in given, given
    return given


@pytest.mark.slow
@pytest.mark.parametrize("encode", [in_node, in_chromium])
@pytest.mark.parametrize(("precision", "dtype"), [("float32", "fp32"), ("float16", "fp16"), ("int8-weights", "q8")])
def test_the_real_transformers_js_gives_the_same_first_five(package, encode, precision, dtype):
    """With each precision of one folder, as `--for browser` writes it."""
    folder = package / "browser"
    if not folder.exists():
        exported(seeing(SHALLOW), folder, preset="browser")
    samples, transform = bundled_samples(), ImageTransform(PIXELS)
    pictures = [f"{name}.png" for name in samples.image_names]
    for name, data in zip(pictures, samples.images, strict=True):
        # Of the model's own size: nothing is resized, which hosts do in ways of their own.
        Image.fromarray(transform.pixels(load_image(data))).save(package / name)
    given = encode(package, {"folder": folder.name, "dtype": dtype, "pictures": pictures, "texts": [*TEXTS]})
    ids = Tokenizer(TOKENS)(TEXTS)
    assert [row[:-1] for row in given["ids"]] == ids[:, :-1].tolist()
    assert given["ids"][-1] != ids[-1].tolist(), "transformers.js cuts the end token; the file puts it there"
    # A copy of the export of several precisions, whose contract names one of them.
    copied = shutil.copytree(folder, package / f"browser_{precision}", dirs_exist_ok=True)
    next(one for one in read_contract(copied).per_precision if one.precision == precision).write(copied)
    loaded = mobileclip.load(copied).model
    pixels = torch.stack([transform(load_image(data)) for data in samples.images])
    images, texts = loaded.encode_image(pixels, normalize=True), loaded.encode_text(ids, normalize=True)
    # Kernels of float16 round in ways of their own.
    error = 2e-3 if precision == "float16" else 1e-4
    torch.testing.assert_close(torch.tensor(given["texts"]), texts, atol=error, rtol=0)
    torch.testing.assert_close(torch.tensor(given["images"]), images, atol=error, rtol=0)
    ours = (images @ texts.T).topk(5).indices
    theirs = (torch.tensor(given["images"]) @ torch.tensor(given["texts"]).T).topk(5).indices
    assert theirs.equal(ours)


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
@pytest.mark.parametrize(("causal", "context_length"), [(False, 77), (True, 32), (False, 32)])
def test_ultralytics_loader_gets_the_towers_embeddings(causal, context_length, tmp_path, monkeypatch):
    """Its YOLOE loads the text encoder by `torch.jit.load`, and calls it with 77 ids of CLIP in 32 bits."""
    spec = attrs.evolve(CAUSAL, causal=causal, input=TextInput(context_length=context_length))
    text = seeing(attrs.evolve(SHALLOW, text=spec)).text_encoder
    folder = exported(text, tmp_path / "export", target="torch", layout="ultralytics")
    assert read_report(folder).passed
    rows = Tokenizer(TextInput())(TEXTS).int()  # as clip.tokenize gives them
    ours = F.normalize(text(Tokenizer(spec.input)(TEXTS)), dim=-1)
    encoder = torch.jit.load(folder / "mobileclip2_b.ts", map_location="cpu")
    for batch in (rows, rows[:1]):
        assert (encoder(batch) - ours[: len(batch)]).abs().max() < 1e-5
    try:
        from ultralytics.nn.text_model import build_text_model
    except ImportError:
        return
    monkeypatch.chdir(folder)
    theirs = build_text_model("mobileclip2:b", device=torch.device("cpu"))
    assert (theirs.encode_text(theirs.tokenize(list(TEXTS))) - ours).abs().max() < 1e-5

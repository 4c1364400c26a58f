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
from mobileclip.export import (
    ExportSpec,
    bundled_samples,
    export_model,
    layouts,
    read_contract,
    read_report,
    verify_export,
)
from mobileclip.export.towers import ensure_end_token
from mobileclip.inputs import TextInput
from tests.browser import CHROMIUM, open_page
from tests.errors import fails
from tests.examples.web import NPM, OFFLINE, run_npm, served
from tests.export.models import CAUSAL, CONVOLUTIONAL, PIXELS, SHALLOW, TOKENS, few_samples, seeing

TEXTS = ("a cat", "a dog", "a beach", "a boat", "a red cup", "two birds", "a text of more words than the model reads")
PACKAGE = "@huggingface/transformers@4.3.1"


def exported(layout, folder, **options):
    return export_model(seeing(SHALLOW), ExportSpec(output=folder, layout=layout, **options), samples=few_samples())


@pytest.fixture(scope="module")
def model():
    return reparameterize(seeing(SHALLOW))


@pytest.fixture(scope="module")
def immich(tmp_path_factory):
    return exported("immich", tmp_path_factory.mktemp("layouts") / "immich")


def content(path):
    return json.loads(path.read_text())


def test_immich_finds_what_it_opens(immich):
    """Names of files, of what is in them, and of inputs, as its machine learning reads them."""
    assert {path.name for path in immich.iterdir()} >= {"visual", "textual", "config.json", "mobileclip.json"}
    prepared = content(immich / "visual" / "preprocess_cfg.json")
    assert prepared["size"] == [PIXELS.size, PIXELS.size]
    assert prepared["interpolation"] == PIXELS.interpolation
    assert (prepared["mean"], prepared["std"]) == (list(PIXELS.mean), list(PIXELS.std))
    config = content(immich / "config.json")
    assert config["text_cfg"]["context_length"] == TOKENS.context_length
    assert config["embed_dim"] == 12


def test_immich_gets_the_models_embeddings(immich, model):
    """Prepared as it does: padded and cut by the configurations, one input at a time, ids in 32 bits."""
    config = content(immich / "textual" / "tokenizer_config.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(immich / "textual" / "tokenizer.json"))
    length = content(immich / "config.json")["text_cfg"]["context_length"]
    pad = config["pad_token"]
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=length)
    text = onnxruntime.InferenceSession(immich / "textual" / "model.onnx")
    visual = onnxruntime.InferenceSession(immich / "visual" / "model.onnx")
    for caption in bundled_samples().captions[:3]:
        ids = np.array([tokenizer.encode(caption).ids], dtype=np.int32)
        (given,) = text.run(None, {"text": ids})
        with torch.no_grad():
            expected = model.encode_text(Tokenizer(TOKENS)([caption]), normalize=True)
        np.testing.assert_allclose(given, expected, atol=1e-5)
    pixels = ImageTransform(PIXELS)(load_image(bundled_samples().images[0]))[None]
    with torch.no_grad():
        expected = model.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(visual.run(None, {"image": pixels.numpy()})[0], expected, atol=1e-5)


def test_a_layout_stays_an_export(immich, model, tmp_path):
    assert verify_export(immich) == read_report(immich)
    assert read_contract(immich).layout == "immich"
    loaded = mobileclip.load(immich)
    ids = Tokenizer(TOKENS)(["a cat", "a dog"])
    with torch.no_grad():
        expected = model.encode_text(ids, normalize=True)
    torch.testing.assert_close(loaded.model.encode_text(ids, normalize=True), expected, atol=1e-5, rtol=0)
    digests = {
        tower.files_sha256.numpy().tobytes() for tower in (loaded.model.image_encoder, loaded.model.text_encoder)
    }
    assert len(digests) == 2, "each tower is known by its own files"
    shutil.copytree(immich, tmp_path / "damaged")
    (tmp_path / "damaged" / "textual" / "tokenizer_config.json").write_text("{}")
    with fails(ValueError, "tokenizer_config.json"):
        verify_export(tmp_path / "damaged")
    shutil.copytree(immich, tmp_path / "elsewhere")
    contract = (immich / "mobileclip.json").read_text()
    changed = contract.replace('"tokenizer": "textual/tokenizer.json"', '"tokenizer": "/etc/hostname"')
    assert changed != contract
    (tmp_path / "elsewhere" / "mobileclip.json").write_text(changed)
    with fails(ValueError, "/etc/hostname"):
        mobileclip.load(tmp_path / "elsewhere")


@pytest.mark.slow
def test_layers_that_stay_in_float32_are_tried_in_a_folder_that_both_towers_share(tmp_path):
    folder = export_model(
        seeing(CONVOLUTIONAL), ExportSpec(output=tmp_path / "out", layout="transformers.js", precision="int8")
    )
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == [
        "text_model_int8.onnx",
        "vision_model_int8.onnx",
    ]
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
    spec = ExportSpec(**{"output": tmp_path / "out", "layout": "transformers.js", **options})
    with fails(ValueError, *words):
        export_model(seeing(SHALLOW), spec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["immich", "transformers.js"])
def test_a_background_that_a_host_does_not_know_is_told(immich, tmp_path, caplog, layout):
    """Of a contract that says so, as every layout is written from the contract."""
    folder = shutil.copytree(immich, tmp_path / "out")
    contract = json.loads((folder / "mobileclip.json").read_text())
    contract["image"]["input"]["background"] = "white"
    (folder / "mobileclip.json").write_text(json.dumps(contract))
    layouts.resolve(layout).write(folder, read_contract(folder))
    assert "was trained with transparent images on white" in caplog.text


def test_a_contract_names_the_background(tmp_path):
    white = attrs.evolve(SHALLOW.image.input, background="white")
    model = seeing(attrs.evolve(SHALLOW, image=attrs.evolve(SHALLOW.image, input=white))).image_encoder
    spec = ExportSpec(output=tmp_path / "out", target="torch", tower="image")
    folder = export_model(model, spec, samples=few_samples())
    assert read_contract(folder).image.input.background == "white"


def test_cut_rows_are_ended():
    rows = torch.tensor([[1, 5, 9, 0], [1, 5, 6, 9], [1, 5, 6, 7], [9, 9, 9, 9]])
    assert ensure_end_token(rows, 9).tolist() == [[1, 5, 9, 0], [1, 5, 6, 9], [1, 5, 6, 9], [9, 9, 9, 9]]


def test_transformers_js_finds_what_it_reads_beside_the_towers(immich, tmp_path):
    """Whatever the layout, the contract says the same: what is written of another layout's is what an export has."""
    contract = read_contract(immich)
    shutil.copytree(immich, tmp_path, dirs_exist_ok=True)
    layouts.resolve("transformers.js").write(tmp_path, contract)
    pictures, whole = content(tmp_path / "preprocessor_config.json"), content(tmp_path / "config.json")
    side = {"height": PIXELS.size, "width": PIXELS.size}
    assert (pictures["size"], pictures["crop_size"]) == ({"shortest_edge": PIXELS.size}, side)
    assert (pictures["image_mean"], pictures["image_std"]) == (list(PIXELS.mean), list(PIXELS.std))
    assert pictures["rescale_factor"] == pytest.approx(1 / 255)
    assert (whole["model_type"], whole["projection_dim"]) == ("clip", 12)
    assert whole["logit_scale_init_value"] == pytest.approx(float(np.log(contract.logit_scale)))
    texts = content(tmp_path / "tokenizer_config.json")
    assert (texts["tokenizer_class"], texts["model_max_length"]) == ("CLIPTokenizer", TOKENS.context_length)


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
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js on this machine: apt-get install nodejs")
    asked = {**asked, "device": "cpu", "folder": str(package / asked["folder"])}
    command = [node, "--input-type=module", "--eval", script]
    run = subprocess.run(
        command, cwd=package, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=300
    )
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


def in_one_precision(folder, precision):
    """A copy of an export of several precisions whose contract names one of them."""
    copied = shutil.copytree(folder, folder.with_name(f"browser_{precision}"), dirs_exist_ok=True)
    contract = read_contract(copied)
    next(one for one in contract.each if one.precision == precision).write(copied)
    return copied


@pytest.mark.slow
@pytest.mark.parametrize("encode", [in_node, in_chromium])
@pytest.mark.parametrize(("precision", "dtype"), [("float32", "fp32"), ("float16", "fp16"), ("int8-weights", "q8")])
def test_the_real_transformers_js_gives_the_same_first_five(package, encode, precision, dtype):
    """With each precision of one folder, as `--for browser` writes it."""
    folder = package / "browser"
    if not folder.exists():
        spec = ExportSpec(output=folder)
        export_model(seeing(SHALLOW), spec, place="browser", samples=few_samples(), show_progress=False)
    samples, transform = bundled_samples(), ImageTransform(PIXELS)
    pictures = [f"{name}.png" for name in samples.image_names]
    for name, data in zip(pictures, samples.images, strict=True):
        # Of the model's own size: nothing is resized, which hosts do in ways of their own.
        Image.fromarray(transform.pixels(load_image(data))).save(package / name)
    given = encode(package, {"folder": folder.name, "dtype": dtype, "pictures": pictures, "texts": [*TEXTS]})
    ids = Tokenizer(TOKENS)(TEXTS)
    assert [row[:-1] for row in given["ids"]] == ids[:, :-1].tolist()
    assert given["ids"][-1] != ids[-1].tolist(), "transformers.js cuts the end token; the file puts it there"
    loaded = mobileclip.load(in_one_precision(folder, precision)).model
    pixels = torch.stack([transform(load_image(data)) for data in samples.images])
    images, texts = loaded.encode_image(pixels, normalize=True), loaded.encode_text(ids, normalize=True)
    # Kernels of float16 round in ways of their own.
    error = 2e-3 if precision == "float16" else 1e-4
    torch.testing.assert_close(torch.tensor(given["texts"]), texts, atol=error, rtol=0)
    torch.testing.assert_close(torch.tensor(given["images"]), images, atol=error, rtol=0)
    ours = (images @ texts.T).topk(5).indices
    theirs = (torch.tensor(given["images"]) @ torch.tensor(given["texts"]).T).topk(5).indices
    assert theirs.equal(ours)


class TestUltralytics:
    """Its YOLOE loads the text encoder by `torch.jit.load`, and calls it with 77 ids of CLIP in 32 bits."""

    @pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
    @pytest.mark.parametrize("context_length", [77, 32])
    @pytest.mark.parametrize("causal", [False, True])
    def test_its_loader_gets_the_towers_embeddings(self, causal, context_length, tmp_path, monkeypatch):
        spec = attrs.evolve(CAUSAL, causal=causal, input=TextInput(context_length=context_length))
        text = seeing(attrs.evolve(SHALLOW, text=spec)).text_encoder
        options = ExportSpec(output=tmp_path / "export", target="torch", layout="ultralytics")
        folder = export_model(text, options, samples=few_samples())
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

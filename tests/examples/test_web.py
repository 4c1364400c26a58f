"""The page of examples/web in a real browser, beside what Python computes from the same files."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.data import ImageTransform, Tokenizer, load_image
from mobileclip.encoders import save_model
from mobileclip.export import ExportSpec, export_model
from tests.browser import CHROMIUM, open_page
from tests.examples.running import write_images
from tests.examples.web import NPM, build, run_npm, served, write_values
from tests.export.models import CONVOLUTIONAL, TRANSFORMERS, seeing

pytestmark = [
    pytest.mark.slow,  # a minute, most of which goes into the export and the browser
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
    pytest.mark.skipif(NPM is None, reason="no npm on this machine: apt-get install npm"),
]

LABELS = ("a face", "a wall", "many stones", "a rocket")
# Of probabilities; the model in Python computes in float32.
TOLERANCE = {"export": 1e-3, "half": 3e-3, "whole": 1e-3, "immich": 1e-3}
# What Chromium itself says of a machine without a graphics processor, whoever asks for one.
NO_GRAPHICS = '"No available adapters."'
READY = "document.querySelectorAll('#samples button').length"
WORK = "document.getElementById('work-text').textContent"
STATUS = "document.getElementById('model').textContent"
NOTICES = "document.getElementById('notices').innerText"
SCORES = (
    "Object.fromEntries([...document.querySelectorAll('#scores li')]"
    ".map(one => [one.querySelector('.name').textContent, Number(one.style.getPropertyValue('--share'))]))"
)
RANKED = (
    "[...document.querySelectorAll('#results .tile')]"
    ".map(one => [one.title.split('/').at(-1), Number(one.querySelector('.score').textContent)])"
)


@pytest.fixture(scope="module")
def models():
    convolutional = seeing(CONVOLUTIONAL)
    return {"export": convolutional, "half": seeing(TRANSFORMERS), "whole": convolutional, "immich": convolutional}


@pytest.fixture(scope="module")
def dist(tmp_path_factory, models):
    """The built page, with one export where it looks for it and others beside it."""
    folder = build(tmp_path_factory.mktemp("web") / "web")
    half = {"precision": "float16", "preprocess": "uint8", "normalize": False, "dynamic_batch": True}
    whole, immich = {"preprocess": "picture", "dynamic_batch": True}, {"layout": "immich"}
    for name, choices in (("export", {}), ("half", half), ("whole", whole), ("immich", immich)):
        export_model(models[name], ExportSpec(output=folder / name, **choices))
    return folder


@pytest.fixture(scope="module")
def address(dist):
    with served(dist) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_page("about:blank", width=1280) as page:
        yield page


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    write_images(folder, 5)
    (folder / "cat.jpg").rename(folder / "inner" / "cat.jpg")
    return folder


def shown(page, address, *, width=1280, dark=False, height=900):
    """Open the page, and wait until the model is there."""
    page.load(address, width=width, dark=dark, height=height)
    page.wait_for(READY)
    return page


def write(page, selector, text):
    page.evaluate(
        f"(one => {{ one.value = {json.dumps(text)}; one.dispatchEvent(new Event('input')) }})"
        f"(document.querySelector({json.dumps(selector)}))"
    )


def complaints(page):
    return [said for said in page.complaints if NO_GRAPHICS not in said]


def embed(model, paths, texts):
    """Unit embeddings of pictures and texts, as Python computes them."""
    spec = model.spec
    with torch.no_grad():
        images = model.encode_image(torch.stack([ImageTransform(spec.image.input)(load_image(path)) for path in paths]))
        texts = model.encode_text(Tokenizer(spec.text.input)(texts))
        return tuple(torch.nn.functional.normalize(rows, dim=-1) for rows in (images, texts))


def probabilities(model, path, labels):
    images, texts = embed(model, [path], labels)
    shares = (model.logit_scale.exp() * texts @ images[0]).softmax(0)
    return dict(zip(labels, shares.tolist(), strict=True))


def test_resizing_and_tokens_are_those_of_python(dist, tmp_path):
    write_values(tmp_path)
    tested = run_npm(dist.parent, "test", environment=os.environ | {"MOBILECLIP_VALUES": str(tmp_path)})
    assert tested.returncode == 0, tested.stdout
    assert "# pass 58" in tested.stdout


@pytest.mark.parametrize(
    ("query", "width", "dark"),
    [("", 1280, False), ("", 390, True), ("?export=half", 390, False), ("?export=half", 1280, True)],
)
def test_it_proves_itself_and_fits(browser, address, query, width, dark):
    page = shown(browser, address + query, width=width, dark=dark)
    assert page.evaluate(STATUS).startswith("Same as the original model")
    assert 1 >= float(page.evaluate(STATUS).split()[-1]) > (0.9995 if "half" in query else 0.99999)
    page.evaluate("document.querySelector('#samples button').click()")
    page.wait_for(f"Object.keys({SCORES}).length == 5")
    page.evaluate("document.getElementById('proof').open = true")
    assert page.evaluate("document.getElementById('proof-detail').innerText").count("> 0.9") == 2
    for tab in ("label-tab", "search-tab"):
        page.evaluate(f"document.getElementById('{tab}').click()")
        assert page.evaluate("innerWidth") == width
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(NOTICES) == ""
    assert complaints(page) == []
    assert page.requests
    assert all(asked.removeprefix("blob:").startswith(address) for asked in page.requests), page.requests


@pytest.mark.parametrize("name", TOLERANCE)
def test_scores_are_those_of_python(browser, address, models, pictures, name):
    page = shown(browser, f"{address}?export={name}/")
    write(page, "#labels", "\n".join((*LABELS, "", LABELS[0])))
    for path in (pictures / "astronaut.jpg", pictures / "inner" / "cat.jpg"):
        page.choose_files("#picture-file", path)
        page.wait_for(
            f"document.getElementById('labelled').alt == '{path.name}' && document.getElementById('times').textContent"
        )
        expected = probabilities(models[name], path, LABELS)
        page.wait_for(f"Object.keys({SCORES}).length == 4")
        scores = page.evaluate(SCORES)
        assert scores == pytest.approx(expected, abs=TOLERANCE[name])
        assert list(scores) == sorted(expected, key=expected.get, reverse=True)
    assert "ms to read and resize it" in page.evaluate("document.getElementById('times').textContent")
    assert max(expected.values()) - min(expected.values()) > 0.02, "the labels are told apart"


def test_a_folder_is_searched_as_python_ranks_it(browser, address, models, pictures):
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "broken.jpg").write_bytes((pictures / "brick.jpg").read_bytes()[:200])
    page = shown(browser, f"{address}?export=half")
    page.evaluate("document.getElementById('search-tab').click()")
    page.evaluate(
        "globalThis.progress = []; const text = document.getElementById('work-text');"
        "new MutationObserver(() => progress.push(text.textContent)).observe(text, {childList: true})"
    )
    page.choose_files("#folder-file", pictures)
    page.wait_for(f"{NOTICES}.includes('broken.jpg is not an image that this browser can read')")
    page.wait_for("document.getElementById('work').hidden")
    assert any(text.endswith("left") for text in page.evaluate("progress"))
    assert page.evaluate("progress").pop().startswith("6 of 6 pictures")
    paths = sorted(pictures.rglob("*.jpg"))
    paths.remove(pictures / "broken.jpg")
    for query in ("a face", "many stones"):
        write(page, "#text", query)
        images, (text,) = embed(models["half"], paths, [query])
        expected = {path.name: score for path, score in zip(paths, (images @ text).tolist(), strict=True)}
        best = max(expected, key=expected.get)
        page.wait_for(f"{RANKED}.length == 5 && document.querySelector('#results .tile').title.endsWith('{best}')")
        page.wait_for(f"Math.abs({RANKED}[0][1] - {expected[best]}) < 2e-3")
        ranked = dict(page.evaluate(RANKED))
        assert ranked == pytest.approx(expected, abs=2e-3)
        assert list(ranked) == sorted(expected, key=expected.get, reverse=True)
    assert "5 pictures" in page.evaluate("document.getElementById('status').textContent")
    again = shown(browser, f"{address}?export=half")
    again.choose_files("#pictures-file", *paths)
    again.wait_for(f"{WORK}.startsWith('5 of 5 pictures, 5 known from before')")
    other = shown(browser, address)
    other.choose_files("#pictures-file", *paths)
    other.wait_for(f"{WORK}.startsWith('5 of 5 pictures')")
    assert "known" not in other.evaluate(WORK)


def test_an_index_is_opened_and_searched_as_python_searches_it(browser, address, models, pictures, tmp_path):
    save_model(models["export"], tmp_path / "model.safetensors")
    save_model(models["half"], tmp_path / "other.safetensors")
    for name in ("model", "other"):
        index = Collection.create(tmp_path / name, ModelSource(checkpoint=str(tmp_path / f"{name}.safetensors")))
        index.add(pictures, options=IndexOptions(show_progress=False))
        assert index.export(tmp_path / f"{name} pictures.safetensors") == 5
    page = shown(browser, address)
    page.evaluate("document.getElementById('search-tab').click()")
    for name, notice in (("model", "holds no pictures"), ("other pictures", "were indexed with another model")):
        page.choose_files("#index-file", tmp_path / f"{name}.safetensors")
        page.wait_for(f"{NOTICES}.includes('{notice}')")
    page.choose_files("#index-file", tmp_path / "model pictures.safetensors")
    page.wait_for("document.getElementById('status').textContent.startsWith('5 pictures')")
    assert page.evaluate(NOTICES) == ""
    expected = Collection.open(tmp_path / "model").search("a face", k=5)
    write(page, "#text", "a face")
    page.wait_for(f"{RANKED}.length == 5")
    assert page.evaluate("[...document.querySelectorAll('#results .tile')].map(one => one.title)") == [
        str(Path(match.path).relative_to(pictures)) for match in expected
    ]
    assert [score for _, score in page.evaluate(RANKED)] == pytest.approx([one.score for one in expected], abs=2e-3)
    page.wait_for("[...document.querySelectorAll('#results img')].every(one => one.complete && one.naturalWidth)")
    page.evaluate("document.querySelector('#results button').click()")
    page.wait_for("document.getElementById('one-picture').naturalWidth > 0")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "model pictures.safetensors").read_bytes()[:3000])
    page.choose_files("#index-file", tmp_path / "torn.safetensors")
    page.wait_for(f"{NOTICES}.includes('torn.safetensors is damaged, or not whole')")
    assert complaints(page) == []


def changed_contract(dist, folder_name, /, **changes):
    """Write another export that says something else of itself."""
    folder = dist / folder_name
    shutil.copytree(dist / "export", folder)
    contract = json.loads((folder / "mobileclip.json").read_text())
    (folder / "mobileclip.json").write_text(json.dumps(contract | changes))


def test_what_is_wrong_with_an_export_is_said(browser, dist, address):
    changed_contract(dist, "other", target="coreml")
    changed_contract(dist, "future", format_version=99)
    changed_contract(dist, "alone", text=None)
    shutil.copytree(dist / "export", dist / "damaged")
    (dist / "damaged" / "image.onnx").write_bytes(b"damaged")
    for query, *expected in (
        ("?export=nowhere", "There is no mobileclip.json", "nowhere/", "mobileclip export", "--target onnx"),
        ("?export=other", "for the target 'coreml'", "mobileclip export"),
        ("?export=future", "format version 99", "mobileclip export"),
        ("?export=alone", "has the image tower alone", "--tower both"),
        ("?export=damaged", "image.onnx is damaged, or not whole", "export the model again"),
        ("?backend=abacus", "no backend 'abacus'", "webgpu, wasm"),
    ):
        browser.load(address + query, width=390)
        browser.wait_for(f"{STATUS} == 'No model'")
        notices = browser.evaluate(NOTICES)
        assert all(text in notices for text in expected), notices
        assert browser.evaluate("document.getElementById('choose-picture').disabled")
        assert browser.evaluate("document.documentElement.scrollWidth") == 390

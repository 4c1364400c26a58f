"""The page of examples/web in a real browser, beside what Python computes from the same files."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mobileclip import ImageTextModel
from mobileclip.collections import Collection, IndexOptions, ModelSource
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
CHOICES = {
    "export": {},
    "half": {"precision": "float16", "preprocess": "uint8", "normalize": False, "dynamic_batch": True},
    "whole": {"preprocess": "picture", "dynamic_batch": True},
    "immich": {"layout": "immich"},
}
# What Chromium itself says of a machine without a graphics processor, whoever asks for one.
NO_GRAPHICS = '"No available adapters."'
WORK, STATUS, TIMES, FOUND = (
    f"document.getElementById('{name}').textContent" for name in ("work-text", "model", "times", "status")
)
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
    return dict.fromkeys(CHOICES, seeing(CONVOLUTIONAL)) | {"half": seeing(TRANSFORMERS)}


@pytest.fixture(scope="module")
def dist(tmp_path_factory, models):
    """The built page, with one export where it looks for it and others beside it."""
    folder = build(tmp_path_factory.mktemp("web") / "web")
    for name, choices in CHOICES.items():
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


def shown(page, address, *, width=1280, dark=False):
    """Open the page, and wait until the model is there."""
    page.load(address, width=width, dark=dark)
    page.wait_for("document.querySelectorAll('#samples button').length")
    return page


def click(page, selector):
    page.evaluate(f"document.querySelector('{selector}').click()")


def write(page, selector, text):
    page.evaluate(
        f"(one => {{ one.value = {json.dumps(text)}; one.dispatchEvent(new Event('input')) }})"
        f"(document.querySelector('{selector}'))"
    )


def complaints(page):
    return [said for said in page.complaints if NO_GRAPHICS not in said]


def embed(model, paths, texts):
    """Unit embeddings of pictures and texts, as Python computes them."""
    clip = ImageTextModel(model)
    return clip.encode_image(paths), clip.encode_text(texts)


def test_resizing_and_tokens_are_those_of_python(dist, tmp_path):
    write_values(tmp_path)
    tested = run_npm(dist.parent, "test", environment=os.environ | {"MOBILECLIP_VALUES": str(tmp_path)})
    assert tested.returncode == 0, tested.stdout
    assert "# pass 58" in tested.stdout


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("query", ["", "?export=half"])
def test_it_proves_itself_and_fits(browser, address, query, width, dark):
    page = shown(browser, address + query, width=width, dark=dark)
    assert page.evaluate(STATUS).startswith("Same as the original model")
    assert 1 >= float(page.evaluate(STATUS).split()[-1]) > (0.9995 if "half" in query else 0.99999)
    click(page, "#samples button")
    page.wait_for(f"Object.keys({SCORES}).length == 5")
    page.evaluate("document.getElementById('proof').open = true")
    assert page.evaluate("document.getElementById('proof-detail').innerText").count("> 0.9") == 2
    for tab in ("#label-tab", "#search-tab"):
        click(page, tab)
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
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
        page.wait_for(f"document.getElementById('labelled').alt == '{path.name}' && {TIMES}")
        (image,), texts = embed(models[name], [path], LABELS)
        shares = (models[name].logit_scale.detach().exp() * texts @ image).softmax(0)
        expected = dict(zip(LABELS, shares.tolist(), strict=True))
        page.wait_for(f"Object.keys({SCORES}).length == 4")
        scores = page.evaluate(SCORES)
        assert scores == pytest.approx(expected, abs=TOLERANCE[name])
        assert list(scores) == sorted(expected, key=expected.get, reverse=True)
    assert "ms to read and resize it" in page.evaluate(TIMES)
    assert max(expected.values()) - min(expected.values()) > 0.02, "the labels are told apart"


def test_a_folder_is_searched_as_python_ranks_it(browser, address, models, pictures):
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "broken.jpg").write_bytes((pictures / "brick.jpg").read_bytes()[:200])
    page = shown(browser, f"{address}?export=half")
    click(page, "#search-tab")
    page.evaluate(
        "globalThis.progress = []; const text = document.getElementById('work-text');"
        "new MutationObserver(() => progress.push(text.textContent)).observe(text, {childList: true})"
    )
    page.choose_files("#folder-file", pictures)
    page.wait_for(f"{NOTICES}.includes('broken.jpg is not an image that this browser can read')")
    page.wait_for("document.getElementById('work').hidden")
    assert any(text.endswith("left") for text in page.evaluate("progress"))
    assert page.evaluate("progress").pop().startswith("6 of 6 images")
    paths = sorted(pictures.rglob("*.jpg"))
    paths.remove(pictures / "broken.jpg")
    for query in ("a face", "many stones"):
        write(page, "#text", query)
        images, (text,) = embed(models["half"], paths, [query])
        expected = dict(zip((path.name for path in paths), (images @ text).tolist(), strict=True))
        best = max(expected, key=expected.get)
        page.wait_for(f"{RANKED}.length == 5 && document.querySelector('#results .tile').title.endsWith('{best}')")
        page.wait_for(f"Math.abs({RANKED}[0][1] - {expected[best]}) < 2e-3")
        ranked = dict(page.evaluate(RANKED))
        assert ranked == pytest.approx(expected, abs=2e-3)
        assert list(ranked) == sorted(expected, key=expected.get, reverse=True)
    assert "5 images" in page.evaluate(FOUND)
    for query, known in (("?export=half", ", 5 from the cache"), ("", "")):
        page = shown(browser, address + query)
        page.choose_files("#pictures-file", *paths)
        page.wait_for(f"{WORK}.startsWith('5 of 5 images{known}')")
        assert ("from the cache" in page.evaluate(WORK)) == bool(known)


def test_an_index_is_opened_and_searched_as_python_searches_it(browser, address, models, pictures, tmp_path):
    for name, model in (("model", models["export"]), ("other", models["half"])):
        save_model(model, tmp_path / f"{name}.safetensors")
        index = Collection.create(tmp_path / name, ModelSource(checkpoint=str(tmp_path / f"{name}.safetensors")))
        index.add(pictures, options=IndexOptions(show_progress=False))
        assert index.export(tmp_path / f"{name} pictures.safetensors") == 5
    page = shown(browser, address)
    click(page, "#search-tab")
    for name, notice in (("model", "holds no images"), ("other pictures", "were indexed with another model")):
        page.choose_files("#index-file", tmp_path / f"{name}.safetensors")
        page.wait_for(f"{NOTICES}.includes('{notice}')")
    page.choose_files("#index-file", tmp_path / "model pictures.safetensors")
    page.wait_for(f"{FOUND}.startsWith('5 images')")
    assert page.evaluate(NOTICES) == ""
    expected = Collection.open(tmp_path / "model").search("a face", k=5)
    write(page, "#text", "a face")
    page.wait_for(f"{RANKED}.length == 5")
    titles = page.evaluate("[...document.querySelectorAll('#results .tile')].map(one => one.title)")
    assert titles == [str(Path(match.path).relative_to(pictures)) for match in expected]
    assert [score for _, score in page.evaluate(RANKED)] == pytest.approx([one.score for one in expected], abs=2e-3)
    page.wait_for("[...document.querySelectorAll('#results img')].every(one => one.complete && one.naturalWidth)")
    click(page, "#results button")
    page.wait_for("document.getElementById('one-picture').naturalWidth > 0")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "model pictures.safetensors").read_bytes()[:3000])
    page.choose_files("#index-file", tmp_path / "torn.safetensors")
    page.wait_for(f"{NOTICES}.includes('torn.safetensors is damaged, or not whole')")
    assert complaints(page) == []


def test_what_is_wrong_with_an_export_is_said(browser, dist, address):
    changes = {"other": {"target": "coreml"}, "future": {"format_version": 99}, "alone": {"text": None}, "damaged": {}}
    for name, changed in changes.items():
        shutil.copytree(dist / "export", dist / name)
        contract = json.loads((dist / name / "mobileclip.json").read_text())
        (dist / name / "mobileclip.json").write_text(json.dumps(contract | changed))
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

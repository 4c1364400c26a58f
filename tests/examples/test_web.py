"""The page of examples/web in a real browser, beside what Python computes from the same files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.data import ImageTransform, Tokenizer, load_image
from mobileclip.encoders import load_model, save_model
from mobileclip.export import ExportSpec, bundled_samples, export_model
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.tensor_files import file_sha256
from tests.axe import findings
from tests.browser import CHROMIUM, open_page
from tests.examples.running import write_pictures
from tests.examples.web import NPM, build, run_npm, served, write_values
from tests.export.models import CONVOLUTIONAL, TRANSFORMERS, seeing
from tests.golden.checkpoints import golden

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
SOFTWARE_GRAPHICS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader")
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
READY = "document.querySelectorAll('#samples button').length"
DETAIL = "document.getElementById('proof-detail').textContent"
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
    export_model(models["export"], ExportSpec(output=folder / "export"))
    half = ExportSpec(
        output=folder / "half", precision="float16", preprocess="uint8", normalize=False, dynamic_batch=True
    )
    export_model(models["half"], half)
    export_model(models["whole"], ExportSpec(output=folder / "whole", preprocess="picture", dynamic_batch=True))
    export_model(models["immich"], ExportSpec(output=folder / "immich", layout="immich"))
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
    folder.mkdir()
    write_pictures(folder, 5)
    inner = folder / "inner"
    inner.mkdir()
    (folder / "cat.jpg").rename(inner / "cat.jpg")
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


def least_cosine(page):
    return float(page.evaluate(STATUS).split()[-1])


def embed(model, paths, texts):
    """Unit embeddings of pictures and texts, as Python computes them."""
    spec = model.spec
    with torch.no_grad():
        images = model.encode_image(torch.stack([ImageTransform(spec.image.input)(load_image(path)) for path in paths]))
        return (
            torch.nn.functional.normalize(images, dim=-1),
            torch.nn.functional.normalize(model.encode_text(Tokenizer(spec.text.input)(texts)), dim=-1),
        )


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
    assert 1 >= least_cosine(page) > (0.9995 if "half" in query else 0.99999)
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
    again.wait_for(
        "document.getElementById('work-text').textContent.startsWith('5 of 5 pictures, 5 known from before')"
    )
    other = shown(browser, address)
    other.choose_files("#pictures-file", *paths)
    other.wait_for("document.getElementById('work-text').textContent.startsWith('5 of 5 pictures')")
    assert "known" not in other.evaluate("document.getElementById('work-text').textContent")


def test_an_index_is_opened_and_searched_as_python_searches_it(browser, address, models, pictures, tmp_path):
    save_model(models["export"], tmp_path / "model.safetensors")
    save_model(models["half"], tmp_path / "other.safetensors")
    for name in ("model", "other"):
        index = Collection.create(tmp_path / name, ModelSource(checkpoint=str(tmp_path / f"{name}.safetensors")))
        index.add(pictures, options=IndexOptions(show_progress=False))
        assert index.export(tmp_path / f"{name} pictures.safetensors") == 5
    page = shown(browser, address)
    page.evaluate("document.getElementById('search-tab').click()")
    page.choose_files("#index-file", tmp_path / "model.safetensors")
    page.wait_for(f"{NOTICES}.includes('model.safetensors holds no pictures')")
    page.choose_files("#index-file", tmp_path / "other pictures.safetensors")
    page.wait_for(f"{NOTICES}.includes('were indexed with another model')")
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


SMALL_TARGETS = """[...document.querySelectorAll('button, input, select, summary')].filter(one => one.checkVisibility())
    .filter(one => (({width, height}) => width && Math.min(width, height) < 24)((one.closest('label') ?? one)
    .getBoundingClientRect())).map(one => one.outerHTML)"""


@pytest.mark.parametrize("dark", [True, False])
def test_an_index_fits_a_phone(browser, address, models, pictures, tmp_path, dark):  # noqa: PLR0917  fixtures
    save_model(models["export"], tmp_path / "model.safetensors")
    index = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(tmp_path / "model.safetensors")))
    index.add(pictures, options=IndexOptions(show_progress=False))
    assert index.export(tmp_path / "pictures.safetensors") == 5
    page = shown(browser, address, width=360, height=780, dark=dark)
    page.tap("#search-tab")
    page.choose_files("#index-file", tmp_path / "pictures.safetensors")
    page.wait_for("document.getElementById('status').textContent.startsWith('5 pictures')")
    write(page, "#text", "a face")
    page.wait_for(f"{RANKED}.length == 5")
    scores = {Path(one.path).name: one.score for one in index.search("a face", k=5)}
    found = dict(page.evaluate(RANKED))
    assert found == pytest.approx(scores, abs=2e-3)
    assert list(found) == sorted(found, key=found.get, reverse=True)
    for step in ("#results .tile", "#close"):
        page.evaluate(f"document.querySelector('{step}').scrollIntoView({{block: 'center'}})")
        page.tap(step)
        page.wait_for(f"document.getElementById('one').open === {json.dumps(step != '#close')}")
        assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth") == 360
        assert page.evaluate(SMALL_TARGETS) == []
        assert findings(page) == []
        page.screenshot(tmp_path / f"phone-{dark}-{step[1:4]}.png")
    assert complaints(page) == []


def test_many_pictures_are_dropped_and_stopped(browser, address, tmp_path):
    for i in range(70):
        Image.new("RGB", (90, 80), (i, 2 * i, 255 - 3 * i)).save(tmp_path / f"{i}.png")
    page = shown(browser, address)
    page.evaluate("document.getElementById('search-tab').click()")
    write(page, "#text", "a wall")
    count = "Number(document.getElementById('status').textContent.split(' ')[0])"
    page.drop_files("#collection-drop", tmp_path)
    page.wait_for("parseInt(document.getElementById('work-text').textContent) >= 2")
    page.evaluate("document.getElementById('stop').click()")
    page.wait_for(f"document.getElementById('work').hidden && {count} >= 2")
    assert page.evaluate(count) < 70
    page.drop_files("#collection-drop", tmp_path)
    page.wait_for(f"document.getElementById('work').hidden && {count} == 70")
    assert page.evaluate(f"{RANKED}.length") == 60
    page.evaluate("document.getElementById('more').click()")
    page.wait_for(f"{RANKED}.length == 70")
    assert page.evaluate("document.getElementById('more').hidden")
    scores = [score for _, score in page.evaluate(RANKED)]
    assert scores == sorted(scores, reverse=True)
    assert complaints(page) == []


def test_what_is_decoded_is_what_pillow_decodes(browser, address, models, tmp_path):
    """Transparency, orientation and another mode."""
    image = load_image(bundled_samples().images[0])
    alpha = image.convert("L").point(lambda value: value // 2)
    translucent = image.copy()
    translucent.putalpha(alpha)
    turned = type(image.getexif())()
    turned[0x0112] = 6
    translucent.save(tmp_path / "alpha.png")
    image.resize((301, 203)).save(tmp_path / "turned.jpg", exif=turned)
    image.convert("CMYK").save(tmp_path / "four.jpg")
    page = shown(browser, address)
    write(page, "#labels", "\n".join(LABELS))
    for path in sorted(tmp_path.iterdir()):
        page.choose_files("#picture-file", path)
        page.wait_for(f"document.getElementById('labelled').alt == '{path.name}'")
        expected = probabilities(models["export"], path, LABELS)
        page.wait_for(f"Math.abs({SCORES}['{LABELS[0]}'] - {expected[LABELS[0]]}) < 1e-3", seconds=5)
        assert page.evaluate(SCORES) == pytest.approx(expected, abs=1e-3)


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


def test_a_model_that_computes_something_else_is_not_trusted(browser, dist, address):
    shutil.copytree(dist / "export", dist / "tampered")
    golden = load_file(dist / "tampered" / "golden.safetensors")
    golden["text_embedding"] = golden["text_embedding"].flip(0).contiguous()
    save_file(golden, dist / "tampered" / "golden.safetensors")
    report = json.loads((dist / "tampered" / "report.json").read_text())
    report["gates"][-1] |= {"passed": False, "value": 0.5}
    (dist / "tampered" / "report.json").write_text(json.dumps(report))
    contract = json.loads((dist / "tampered" / "mobileclip.json").read_text())
    contract["files"] |= {name: file_sha256(dist / "tampered" / name) for name in ("golden.safetensors", "report.json")}
    (dist / "tampered" / "mobileclip.json").write_text(json.dumps(contract))
    page = shown(browser, f"{address}?export=tampered")
    assert page.evaluate(STATUS).startswith("Not to be trusted: cosine 0.")
    notices = page.evaluate(NOTICES)
    assert "does not compute what it should" in notices
    assert "failed its own gates when it was made: ranking agreement is 0.5, expected >= 0.9444" in notices


def test_what_is_wrong_with_a_picture_is_said(browser, address, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture either")
    page = shown(browser, address)
    page.choose_files("#picture-file", tmp_path / "notes.txt")
    page.wait_for(f"{NOTICES}.includes('notes.txt is not an image but text/plain')")
    page.choose_files("#picture-file", tmp_path / "broken.png")
    page.wait_for(f"{NOTICES}.includes('broken.png is not an image that this browser can read')")
    page.choose_files("#folder-file", tmp_path)
    # By its path: the browser reads the folder on its own time, and the notice before names the file as well.
    page.wait_for(f"{NOTICES}.includes('{tmp_path.name}/broken.png is not an image')")
    page.choose_files("#pictures-file", tmp_path / "notes.txt")
    page.wait_for(f"{NOTICES}.includes('There are no images among these files')")
    page.evaluate("document.getElementById('take-photo').click()")
    page.wait_for(f"{NOTICES}.includes('There is no camera on this device. Choose a picture instead.')")


def test_keys_alone_are_enough(browser, address):
    page = shown(browser, address)
    focus = "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
    reached = []
    for _ in range(11):
        page.press("Tab", code=9)
        reached.append(page.evaluate(focus))
    picture = [f"Try {name}" for name in bundled_samples().image_names[:4]]
    assert reached[1:9] == ["label-tab", "choose-picture", "take-photo", *picture, "labels"]
    page.evaluate("document.getElementById('label-tab').focus()")
    page.press("ArrowRight", code=39)
    assert page.evaluate(focus) == "search-tab"
    assert not page.evaluate("document.getElementById('search').hidden")
    page.press("Tab", code=9)
    assert page.evaluate(focus) == "choose-folder"
    write(page, "#text", "a wall")
    page.wait_for("!document.getElementById('use-samples').hidden")
    assert "no pictures to search yet" in page.evaluate("document.getElementById('status').textContent")
    page.evaluate("document.getElementById('use-samples').focus()")
    page.press("Enter", code=13, text="\r")
    page.wait_for(f"{RANKED}.length == 4")
    page.evaluate("document.querySelector('#results button').focus()")
    first = page.evaluate("document.querySelector('#results .tile').title")
    page.press("Enter", code=13, text="\r")
    page.wait_for("document.getElementById('one').open && document.getElementById('one-picture').naturalWidth")
    assert page.evaluate("document.getElementById('one-name').textContent") == first
    page.press("Escape", code=27)
    page.wait_for("!document.getElementById('one').open")
    assert page.evaluate("document.activeElement.title") == first


def test_a_picture_dropped_while_the_model_loads_is_looked_at(browser, address, pictures):
    page = browser
    page.load(address, width=1280)
    page.wait_for("!document.getElementById('unserved')")
    page.drop_files("header", pictures / "astronaut.jpg")
    page.wait_for(READY)
    page.wait_for("document.getElementById('labelled').alt == 'astronaut.jpg'")
    assert page.evaluate("location.href") == address
    page.drop_files("header", pictures / "astronaut.jpg")
    assert page.evaluate("location.href") == address


def test_what_is_said_of_one_tab_ends_with_it(browser, address, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    page = shown(browser, address)
    page.choose_files("#picture-file", tmp_path / "notes.txt")
    page.wait_for(f"{NOTICES}.includes('notes.txt is not an image')")
    page.evaluate("document.getElementById('search-tab').click()")
    assert page.evaluate(NOTICES) == ""


def test_the_page_says_whose_model_it_is(browser, dist, address):
    about = "document.getElementById('about').textContent"
    assert "A model of your own" in shown(browser, address).evaluate(about)
    changed_contract(dist, "named", name="mobileclip_s0", licence="for research only")
    said = shown(browser, f"{address}?export=named").evaluate(about)
    assert said.startswith("mobileclip_s0, ")
    assert said.endswith(" MB. Licence: for research only.")
    detail = browser.evaluate(DETAIL)
    assert "loaded in" in detail
    assert "not that its answers are right" in detail


@pytest.mark.slow
def test_webgpu(address):
    """By a graphics processor that the browser itself plays."""
    with open_page(address, width=1280, flags=SOFTWARE_GRAPHICS) as page:
        page.wait_for(READY, seconds=200)
        if not page.evaluate("navigator.gpu.requestAdapter().then(Boolean)"):
            pytest.skip("this Chromium comes without SwiftShader, so it has no WebGPU here")
        assert "float32, WebGPU" in page.evaluate(DETAIL)
        assert 1 >= least_cosine(page) > 0.99999
        assert complaints(page) == []


@pytest.mark.slow
def test_threads_where_the_server_allows_them(browser, dist, address):
    """The page's own server sends the headers that others do not."""
    script = [sys.executable, str(dist.parent / "serve.py"), "--port", "0"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as server:
        try:
            page = shown(browser, server.stdout.readline().strip())
            count = min(4, page.evaluate("navigator.hardwareConcurrency"))
            assert f"float32, WebAssembly, {count} thread" in page.evaluate(DETAIL)
            assert 1 >= least_cosine(page) > 0.99999
            assert complaints(page) == []
        finally:
            server.terminate()
    assert "float32, WebAssembly, 1 thread;" in shown(browser, address).evaluate(DETAIL)


def test_a_photo(address):
    """By a camera that the browser itself plays."""
    with open_page(address, width=1280, flags=FAKE_CAMERA) as page:
        page.wait_for(READY)
        page.evaluate("document.getElementById('take-photo').click()")
        page.wait_for("document.getElementById('camera-picture').videoWidth")
        page.evaluate("document.getElementById('shoot').click()")
        page.wait_for(f"Object.keys({SCORES}).length == 5")
        assert not page.evaluate("document.getElementById('camera').open")
        assert complaints(page) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("apple_mobileclip_s0", "float32"),
        ("apple_mobileclip_s0", "float16"),
        ("apple_mobileclip_s0", "bfloat16"),
        ("apple_mobileclip_s0", "int8"),
        ("apple_mobileclip_s1", "float16"),
        ("apple_mobileclip_s2", "float16"),
        ("apple_mobileclip_b", "float16"),
        ("openclip_MobileCLIP2-S0", "float16"),
    ],
)
def test_full_size_models(browser, dist, address, name, precision, pictures, tmp_path):  # noqa: PLR0917  fixtures
    torch.save(golden(name).state(), tmp_path / "checkpoint.pt")
    export_model(tmp_path / "checkpoint.pt", ExportSpec(output=dist / f"{name}_{precision}", precision=precision))
    browser.load(f"{address}?export={name}_{precision}", width=1280)
    browser.wait_for(READY, seconds=300)
    assert browser.evaluate(STATUS).startswith("Same as the original model")
    assert least_cosine(browser) > LEAST_COSINE[precision]
    write(browser, "#labels", "\n".join(LABELS))
    path = pictures / "inner" / "cat.jpg"
    browser.choose_files("#picture-file", path)
    browser.wait_for(f"Object.keys({SCORES}).length == 4", seconds=120)
    if precision == "float32":
        model = load_model(tmp_path / "checkpoint.pt")
        assert browser.evaluate(SCORES) == pytest.approx(probabilities(model, path, LABELS), abs=1e-3)
    assert complaints(browser) == []

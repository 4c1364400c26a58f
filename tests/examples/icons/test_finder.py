"""The icon finder of two sets, from packages made here: its maths beside Python's, and its page in a real browser."""

import gzip
import json
import os
import subprocess
from functools import cache

import attrs
import pytest
import torch
from safetensors.torch import load

import mobileclip
from examples.icons import build_dataset
from examples.icons.finder import FinderSpec, build_finder
from examples.icons.finder.building import MODEL
from examples.icons.finder.page import SCRIPTS
from examples.icons.finder.reducing import Reduced, recall
from examples.icons.sets import ICON_SETS
from mobileclip.inference.texts import routed
from tests.browser import CHROMIUM, open_page
from tests.examples.icons.packages import FEW, write_icon_packages
from tests.examples.web import NPM, OFFLINE, served

pytestmark = [
    pytest.mark.slow,  # Node.js, the models and the browser
    pytest.mark.skipif(NPM is None, reason="no npm on this machine: apt-get install npm"),
]
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

SETS = ("bi", "lucide")
# Names come before what a drawing looks like: one that looks like a bin has another name.
NAMED = {
    "save": '<path d="M4 4h13l3 3v13H4zM8 4v5h7V4zM7 13h10v7H7z" fill-rule="evenodd"/>',
    "trash": '<path d="M2 2h6v2z"/>',
    "trash-can": '<path d="M2 22h6v-2z"/>',
    "bin": '<path d="M5 8h14l-1 13H6zM3 5h18v2H3zM9 2h6v2H9z"/>',
}
# Not a capital sigma at the end of a word: browsers make ς of it, as the tower was taught, and `tokenizers` makes σ.
TEXTS = ("red circle", "Fahrrad", "télécharger", "検索", "корзина", "سهم", "οδυσσεασ straße", "İstanbul ﬁle")
TEXTS += ("!?", "", "a " * 40)
TITLES = "[...document.querySelectorAll('.tile')].map(one => one.title)"
DRAWN = "[...document.querySelectorAll('.tile')].every(one => one.querySelector('img')?.naturalWidth)"
READY = f"{TITLES}.length && {DRAWN}"


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finder")
    modules = write_icon_packages(folder / "data" / "download" / "node_modules", FEW.sets)
    for path in (modules / one.package / "icons.json" for one in ICON_SETS if one.name in SETS):
        content = json.loads(path.read_text())
        content["icons"] |= {name: {"body": body} for name, body in NAMED.items()}
        path.write_text(json.dumps(content))
    build_dataset(attrs.evolve(FEW, output=folder / "data"))
    try:
        build_finder(FinderSpec(output=folder / "page", data=folder / "data", sets=SETS, icons_per_file=8))
    except ValueError as error:
        if any(word in str(error) for word in OFFLINE):
            pytest.skip("the npm registry cannot be reached")
        raise
    return folder / "page"


def catalogue(finder):
    return json.loads(gzip.decompress((finder / "catalogue.bin").read_bytes()))


def index(finder):
    return load(gzip.decompress((finder / "index.bin").read_bytes()))


def search(page, text):
    page.evaluate(f"document.getElementById('text').value = {json.dumps(text)}")
    page.evaluate("document.getElementById('find').click()")
    page.wait_for(READY)
    return page.evaluate(TITLES)


def test_principal_components_keep_the_order_of_products():
    texts, images = torch.randn(50, 8), torch.randn(200, 8) @ torch.diag(torch.tensor([1.0] * 4 + [0.01] * 4)) + 3
    reduced = Reduced.of(images, 4)
    assert (reduced.vectors.shape, reduced.vectors.dtype) == ((200, 4), torch.int8)
    exact = texts @ (images - images.mean(dim=0)).T
    assert (texts @ reduced.matrix.T @ reduced.vectors.float().T - exact).abs().max() < 0.02 * exact.abs().max()
    names = [str(i) for i in range(200)]
    best = [names[i] for i in exact.argmax(dim=1)]
    for one, other in ((texts, images), (texts @ reduced.matrix.T, reduced.vectors.float())):
        assert recall(one, other, best, names) == 100


def test_a_build_has_a_row_for_each_glyph_with_its_variants(finder):
    found, report = catalogue(finder), json.loads((finder / "report.json").read_bytes())
    variants = {(one, name): number for one, _, name, number in found["icons"]}
    assert len(variants) == len(found["icons"]) == report["icons"] == len(index(finder)["vectors"])
    assert {one["licence"]["spdx"] for one in found["sets"]} == {"ISC"}
    assert variants[0, "red circle"] == 2
    assert report["drawings"] == sum(variants.values()) > len(variants)
    assert [abs(one["page"] - one["model"]) <= 20 for one in report["recall"]] == [True, True]


def test_texts_are_embedded_as_by_python(finder, tmp_path):
    """Tokens are in int8 on the page: of a text's direction, more than 0.999 is left."""
    sides, values = text_sides(), []
    for text in TEXTS:
        tower, vector = embedded(finder, text)
        shares = [side.known.share(text) for side in sides]
        values.append({"text": text, "tower": tower, "vector": vector.tolist(), "shares": shares})
    (tmp_path / "values.json").write_text(json.dumps({"folder": str(finder), "texts": values}))
    command = ["node", "--test", str(finder.parent / "data" / "finder" / SCRIPTS / "text.test.js")]
    environment = os.environ | {"MOBILECLIP_VALUES": str(tmp_path / "values.json")}
    tested = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_search_finds_what_python_finds(finder, tmp_path, width, dark):
    with served(finder) as address, open_page(address, width=width, dark=dark) as page:
        page.wait_for("document.querySelectorAll('#results button').length > 3")
        page.evaluate("document.querySelector('#results button:nth-child(2)').click()")
        page.wait_for(READY)
        assert page.evaluate("decodeURIComponent(location.search)") == "?text=speichern"
        found = search(page, "roter Kreis")
        assert len(found) == len(index(finder)["vectors"])
        assert found[:2] == expected(finder, "roter Kreis")[:2]
        page.evaluate("document.querySelector('#sets input').click()")
        page.wait_for("document.getElementById('filtered').textContent === '1 of 2 sets'")
        assert {title.split(", ")[1] for title in page.evaluate(TITLES)} == {"Lucide"}
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.screenshot(tmp_path / "search.png")
        page.load(f"{address}?text=red+circle&set=bi", width=width)
        page.wait_for(READY)
        assert page.evaluate(TITLES)[0] == "red circle, Bootstrap Icons"
        assert page.complaints == []


@in_browser
def test_names_come_before_similarity_and_a_weak_match_is_told(finder, tmp_path):
    buttons = "[...document.querySelectorAll('#results button')].map(one => one.textContent)"
    status = "document.getElementById('status').textContent"
    with served(finder) as address, open_page(address, width=390) as page:
        page.wait_for(f"{buttons}.length > 3")
        offered = page.evaluate(buttons)
        for word in ("save", "speichern", "保存", "حفظ"):
            assert word in offered
            assert any(title.startswith("save,") for title in search(page, word)[:5]), word
            assert "weak match" not in page.evaluate(status)
        found = [title.partition(",")[0] for title in search(page, "Trash")]
        assert found[:4] == ["trash", "trash", "trash can", "trash can"]
        search(page, "qzxv wqkj")
        assert "weak match" in page.evaluate(status)
        page.screenshot(tmp_path / "weak.png")
        search(page, "red circle")
        assert "weak match" not in page.evaluate(status)
        assert page.complaints == []


@cache
def text_sides():
    return mobileclip.load(MODEL).text_sides


def embedded(finder, text):
    """Return the tower that a text goes to, and its vector: the model's own features in the dimensions of the page."""
    sides = text_sides()
    tower = next(number for number, texts in enumerate(routed([text], sides)) if texts)
    encoder, ids = sides[tower].model.text_encoder, sides[tower].tokenizer([text])
    with torch.inference_mode():
        features = encoder.norm(encoder.pool(encoder.layers(encoder.embed(ids)), ids))
    return tower, (features @ index(finder)[f"{tower}.project"].T)[0]


def expected(finder, text):
    """Return the titles of what Python finds in the files of the page, the best first."""
    found = catalogue(finder)
    scores = index(finder)["vectors"].float() @ embedded(finder, text)[1]
    titles = [f"{name}, {found['sets'][one]['title']}" for one, _, name, _ in found["icons"]]
    return [titles[i] for i in scores.argsort(descending=True).tolist()]

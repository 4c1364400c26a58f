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

pytestmark = pytest.mark.skipif(NPM is None, reason="no npm on this machine: apt-get install npm")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

SETS = ("bi", "lucide")
BOX = '<path d="M5 8h14l-1 13H6zM3 5h18v2H3zM9 2h6v2H9z"/>'
# Names come before what a drawing looks like: one that looks like a bin has another name.
NAMED = {
    "save": '<path d="M4 4h13l3 3v13H4zM8 4v5h7V4zM7 13h10v7H7z" fill-rule="evenodd"/>',
    "trash": '<path d="M2 2h6v2z"/>',
    "trash-can": '<path d="M2 22h6v-2z"/>',
    "bin": BOX,
}
# Not a capital sigma at the end of a word: browsers make ς of it, as the tower was taught, and `tokenizers` makes σ.
TEXTS = (
    "red circle",
    "Fahrrad",
    "télécharger",
    "検索",
    "корзина",
    "سهم",
    "οδυσσεασ straße",
    "İstanbul ﬁle",
    "!?",
    "",
    "a " * 40,
)
TITLES = "[...document.querySelectorAll('.tile')].map(one => one.title)"
DRAWN = "[...document.querySelectorAll('.tile')].every(one => one.querySelector('img')?.naturalWidth)"


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finder")
    modules = write_icon_packages(folder / "data" / "download" / "node_modules", FEW.sets)
    for path in [modules / one.package / "icons.json" for one in ICON_SETS if one.name in SETS]:
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


@pytest.fixture(scope="module")
def address(finder):
    with served(finder) as address:
        yield address


def unpacked(path):
    return gzip.decompress(path.read_bytes())


def vectors(finder):
    return load(unpacked(finder / "index.bin"))["vectors"]


def search(page, text):
    page.evaluate(f"document.getElementById('text').value = {json.dumps(text)}")
    page.evaluate("document.getElementById('find').click()")
    page.wait_for(f"{TITLES}.length && {DRAWN}")
    return page.evaluate(TITLES)


def test_principal_components_keep_the_order_of_products():
    torch.manual_seed(0)
    texts, images = torch.randn(50, 8), torch.randn(200, 8) @ torch.diag(torch.tensor([1.0] * 4 + [0.01] * 4)) + 3
    reduced = Reduced.of(images, 4)
    assert (reduced.vectors.shape, reduced.vectors.dtype) == ((200, 4), torch.int8)
    exact = texts @ (images - images.mean(dim=0)).T
    assert (texts @ reduced.matrix.T @ reduced.vectors.float().T - exact).abs().max() < 0.02 * exact.abs().max()
    names = [str(i) for i in range(200)]
    best = [names[i] for i in exact.argmax(dim=1)]
    assert (
        recall(texts, images, best, names)
        == recall(texts @ reduced.matrix.T, reduced.vectors.float(), best, names)
        == 100
    )


def test_a_build_has_a_row_for_each_glyph_with_its_variants(finder):
    catalogue, report = (
        json.loads(unpacked(finder / "catalogue.bin")),
        json.loads((finder / "report.json").read_bytes()),
    )
    pairs = [(one, name) for one, _, name, _ in catalogue["icons"]]
    variants = [number for *_, number in catalogue["icons"]]
    assert len(set(pairs)) == len(pairs) == report["icons"] == len(vectors(finder))
    assert {one["licence"]["spdx"] for one in catalogue["sets"]} == {"ISC"}
    assert variants[pairs.index((0, "red circle"))] == 2
    assert report["drawings"] == sum(variants) > len(pairs)
    assert len(report["recall"]) == 2
    assert [one["page"] for one in report["recall"]] == [
        pytest.approx(one["model"], abs=20) for one in report["recall"]
    ]


def test_texts_are_embedded_as_by_python(finder, tmp_path):
    """Tokens are in int8 on the page: of a text's direction, more than 0.999 is left."""
    sides, values = text_sides(), []
    for text in TEXTS:
        tower, vector = embedded(finder, text)
        shares = [side.known.share(text) for side in sides]
        values.append({"text": text, "tower": tower, "vector": vector.tolist(), "shares": shares})
    (tmp_path / "values.json").write_text(json.dumps({"folder": str(finder), "texts": values}))
    tested = subprocess.run(
        ["node", "--test", str(finder.parent / "data" / "finder" / SCRIPTS / "text.test.js")],
        env=os.environ | {"MOBILECLIP_VALUES": str(tmp_path / "values.json")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_search_finds_what_python_finds(finder, address, tmp_path, width, dark):
    with open_page(address, width=width, dark=dark) as page:
        page.wait_for("document.querySelectorAll('#results button').length > 3")
        page.evaluate("document.querySelector('#results button:nth-child(2)').click()")
        page.wait_for(f"{TITLES}.length && {DRAWN}")
        assert page.evaluate("decodeURIComponent(location.search)") == "?text=speichern"
        found = search(page, "roter Kreis")
        assert len(found) == len(vectors(finder))
        assert found[:2] == expected(finder, "roter Kreis")[:2]
        page.evaluate("document.querySelector('#sets input').click()")
        page.wait_for("document.getElementById('filtered').textContent === '1 of 2 sets'")
        assert {title.split(", ")[1] for title in page.evaluate(TITLES)} == {"Lucide"}
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.screenshot(tmp_path / "search.png")
        page.load(f"{address}?text=red+circle&set=bi", width=width)
        page.wait_for(f"{TITLES}.length && {DRAWN}")
        assert page.evaluate(TITLES)[0] == "red circle, Bootstrap Icons"
        assert page.complaints == []


@in_browser
def test_names_come_before_similarity_and_a_weak_match_is_told(address, tmp_path):
    buttons = "[...document.querySelectorAll('#results button')].map(one => one.textContent)"
    status = "document.getElementById('status').textContent"
    with open_page(address, width=390) as page:
        page.wait_for(f"{buttons}.length > 3")
        offered = page.evaluate(buttons)
        for word in ("save", "speichern", "保存", "حفظ"):
            assert word in offered
            assert [title for title in search(page, word)[:5] if title.startswith("save,")], word
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
    return tower, (features @ load(unpacked(finder / "index.bin"))[f"{tower}.project"].T)[0]


def expected(finder, text):
    """Return the titles of what Python finds in the files of the page, the best first."""
    catalogue = json.loads(unpacked(finder / "catalogue.bin"))
    scores = vectors(finder).float() @ embedded(finder, text)[1]
    titles = [f"{name}, {catalogue['sets'][one]['title']}" for one, _, name, _ in catalogue["icons"]]
    return [titles[i] for i in scores.argsort(descending=True).tolist()]

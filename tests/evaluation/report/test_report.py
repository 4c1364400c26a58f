"""The page and the plots of a report: parsed, and read back."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import attrs
import numpy as np
import pytest
from PIL import Image

from mobileclip.evaluation.report import write_plots, write_report
from mobileclip.evaluation.results import ModelResults, published_model
from mobileclip.extras import install
from tests.errors import fails, told
from tests.evaluation.reports import NAME, TITLE, WHEN

PUBLISHED = published_model("mobileclip_s0")


class Document(HTMLParser):
    """A page taken apart; what is opened and not closed, or closed and not opened, is an error."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.elements, self._open, self._texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.text = " ".join(" ".join(self._texts).split())
        assert self._open == [], "every element is closed"

    def of(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in {"br", "img", "meta", "wbr"}:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self._texts.append(data)


def test_a_page_is_well_formed_and_alone(report):
    document, source = Document(report[0]), report[0].read_text(encoding="utf-8")
    names = {name for name, _ in document.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    assert document.elements[0] == ("html", {"lang": "en"})
    for name, attributes in document.elements:
        assert not any(key.startswith("on") for key in attributes), name
        for key in attributes.keys() & {"src", "srcset", "href", "action", "poster", "data"}:
            assert attributes[key].startswith(("data:", "#")), name
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert not re.search(r"url\(|@import", style)
    assert style.count("{") == style.count("}")
    (policy,) = (one["content"] for one in document.of("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none'")
    # Nothing in a name or caption becomes markup.
    for bad in ("<script", "<b>", "<small> machine", "<machine>", "<img src=x", "<i>", "\u202e"):
        assert bad not in source, bad
    told(document.text, TITLE, NAME.partition("\u202e")[0], "a <small> machine")


def test_every_image_is_inside_and_has_its_words(report):
    images = Document(report[0]).of("img")
    for one in images:
        assert one["alt"].strip()
        kind, _, data = one["src"].partition(";base64,")
        assert kind == "data:image/png"
        assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).format == "PNG"
    assert len(images) == 2
    assert report[0].stat().st_size < 1_500_000


def test_the_same_bytes_again(report, tmp_path):
    write_report(tmp_path / "again.html", report[1], title=TITLE, when=WHEN)
    assert (tmp_path / "again.html").read_bytes() == report[0].read_bytes()


def test_little_is_enough(tmp_path):
    ours = ModelResults(name="ours", results={}, source="measured")
    write_report(tmp_path / "r.html", [ours])
    assert "1 measured here" in Document(tmp_path / "r.html").text
    assert write_plots(tmp_path, [ours]) == write_plots(tmp_path, [PUBLISHED]) == (), "a single model has no plot"


MISTAKES = [
    ([], ""),
    ([PUBLISHED, PUBLISHED], "'mobileclip_s0'"),
    ([attrs.evolve(PUBLISHED, reference="x")], "'x'"),
    ([attrs.evolve(PUBLISHED, reference="mobileclip_s0")], "'mobileclip_s0'"),
]


@pytest.mark.parametrize(("models", "word"), MISTAKES)
def test_mistakes(tmp_path, models, word):
    with fails(ValueError, word):
        write_report(tmp_path / "report", models)
    with fails(FileNotFoundError):
        write_report(tmp_path / "nowhere" / "r.html", [PUBLISHED])


@pytest.mark.parametrize("package", ["matplotlib.figure", "jinja2"])
def test_without_what_it_needs(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with fails(ModuleNotFoundError, install("report")):
        write_report(tmp_path / "r.html", [PUBLISHED])


def test_a_plot_for_every_device(report, tmp_path):
    paths = write_plots(tmp_path / "plots", report[1])
    names = ["1-measured-this-machine", "2-published-iphone-12-pro-max-core-ml-batch-of-1"]
    assert [path.name for path in paths] == [f"latency-{name}.png" for name in names]
    for path in paths:
        image = Image.open(path)
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
        # Ink on paper, and nothing runs over the edge.
        assert 0.001 < (pixels < 128).mean() < 0.5, path.name
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == edges[0]).all(), path.name


@pytest.mark.parametrize("name", ["W" * 150, "$x$ and $y_", "\u65e5\U00013000\u00e9"])
def test_odd_names_are_drawn(name, tmp_path):
    (path,) = write_plots(tmp_path, [attrs.evolve(PUBLISHED, name=name), published_model("mobileclip_s2")])
    with Image.open(path) as image:
        assert image.size[0] > 300

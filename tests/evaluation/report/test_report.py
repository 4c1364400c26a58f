"""The page and the plots of a report: parsed, and read back."""

from __future__ import annotations

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
from tests.errors import fails
from tests.evaluation.reports import NAME, TITLE, WHEN, written

VOID = {"br", "img", "meta", "wbr"}


class Document(HTMLParser):
    """A page taken apart; what is opened and not closed, or closed and not opened, is an error."""

    def __init__(self, path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements, self.headings, self._open, self._texts = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [], "every element is closed"

    @property
    def text(self):
        return " ".join(" ".join(self._texts).split())

    def of(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self._texts.append(data)
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything in it, and what it was made of."""
    return written(tmp_path_factory.mktemp("report"))


class TestPage:
    def test_well_formed_and_alone(self, report):
        path, _ = report
        document = Document(path)
        names = {name for name, _ in document.elements}
        assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
        assert document.elements[0] == ("html", {"lang": "en"})
        for name, attributes in document.elements:
            assert not any(key.startswith("on") for key in attributes), name
            for key in ("src", "srcset", "href", "action", "poster", "data"):
                address = attributes.get(key, "data:")
                assert address.startswith(("data:image/", "data:", "#")), address
        (style,) = re.findall(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)
        assert "url(" not in style
        assert "@import" not in style
        assert style.count("{") == style.count("}")

    def test_nothing_in_a_name_or_caption_becomes_markup(self, report):
        path, _ = report
        source, document = path.read_text(encoding="utf-8"), Document(path)
        for bad in ("<script", "<b>", "<small> machine", "<machine>", "<img src=x", "<i>"):
            assert bad not in source, bad
        assert TITLE in document.text
        assert NAME.partition("\u202e")[0] in document.text
        assert "a <small> machine" in document.text
        assert "\u202e" not in source
        assert all(attributes.get("src") != "x" for attributes in document.of("img"))
        (policy,) = (one["content"] for one in document.of("meta") if "http-equiv" in one)
        assert policy.startswith("default-src 'none'")

    def test_every_image_is_inside_and_has_its_words(self, report):
        path, _ = report
        images = Document(path).of("img")
        for one in images:
            assert one["alt"].strip()
            kind, _, data = one["src"].partition(";base64,")
            assert kind == "data:image/png"
            assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).format == "PNG"
        assert len(images) == 2
        assert path.stat().st_size < 1_500_000

    def test_the_same_bytes_again(self, report, tmp_path):
        path, models = report
        write_report(tmp_path / "again.html", models, title=TITLE, when=WHEN)
        assert (tmp_path / "again.html").read_bytes() == path.read_bytes()

    def test_little_is_enough(self, tmp_path):
        ours = ModelResults(name="ours", results={}, source="measured")
        write_report(tmp_path / "r.html", [ours])
        assert "1 measured here" in Document(tmp_path / "r.html").text
        assert write_plots(tmp_path / "p", [ours]) == ()

    def test_mistakes(self, report, tmp_path):
        published = published_model("mobileclip_s0")
        _, (*ours, _, _, _) = report
        for models, message in (
            ([], ""),
            ([published, published], "'mobileclip_s0'"),
            ([attrs.evolve(published, reference="x")], "'x'"),
            ([attrs.evolve(published, reference="mobileclip_s0")], "'mobileclip_s0'"),
        ):
            with fails(ValueError, message):
                write_report(tmp_path / "report", models)
        with pytest.raises(FileNotFoundError):
            write_report(tmp_path / "nowhere" / "r.html", ours)

    @pytest.mark.parametrize("package", ["matplotlib.figure", "jinja2"])
    def test_without_what_it_needs(self, tmp_path, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModuleNotFoundError, match=re.escape(install("report"))):
            write_report(tmp_path / "r.html", [published_model("mobileclip_s0")])


class TestPlots:
    def test_one_for_every_device(self, report, tmp_path):
        _, models = report
        paths = write_plots(tmp_path / "plots", models)
        assert [path.name for path in paths] == [
            "latency-1-measured-this-machine.png",
            "latency-2-published-iphone-12-pro-max-core-ml-batch-of-1.png",
        ]
        for path in paths:
            image = Image.open(path)
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("L"))
            # Ink on paper, and nothing runs over the edge.
            assert 0.001 < (pixels < 128).mean() < 0.5, path.name
            edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (edges == edges[0]).all(), path.name

    @pytest.mark.parametrize("name", ["W" * 150, "$x$ and $y_", "\u65e5\U00013000\u00e9"])
    def test_odd_names_are_drawn(self, name, tmp_path):
        models = [attrs.evolve(published_model("mobileclip_s0"), name=name), published_model("mobileclip_s2")]
        (path,) = write_plots(tmp_path, models)
        with Image.open(path) as image:
            assert image.size[0] > 300

    def test_a_single_model_has_no_plot(self, tmp_path):
        assert write_plots(tmp_path / "plots", [published_model("mobileclip_s0")]) == ()

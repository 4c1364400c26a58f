"""The page and the pictures of a report: parsed, and read back."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import attrs
import numpy as np
import pytest
from PIL import Image

from mobileclip.evaluation import published_models
from mobileclip.evaluation.report import (
    Cell,
    Column,
    ModelResults,
    Table,
    published_model,
    write_pictures,
    write_report,
)
from mobileclip.evaluation.report.figures import DARK, LIGHT, drawable, to_png, to_svg
from mobileclip.evaluation.report.latency import draw_latency, latency_panels
from mobileclip.evaluation.report.markup import element, escape
from mobileclip.evaluation.report.pictures import LONGEST_SIDE
from mobileclip.evaluation.report.table_picture import draw_table
from tests.evaluation.reports import CLASS_NAMES, TITLE, WHEN, measured, written

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
        path, _, _ = report
        document = Document(path)
        names = {name for name, _ in document.elements}
        assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
        assert document.elements[0] == ("html", {"lang": "en"})
        for name, attributes in document.elements:
            assert not any(key.startswith("on") for key in attributes), name
            for key in ("src", "srcset", "href", "action", "poster", "data"):
                address = attributes.get(key, "data:")
                assert address.startswith(("data:image/", "data:", "#")), address
        assert all(attributes["href"][1:] in _ids(document) for attributes in document.of("a"))
        (style,) = re.findall(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)
        assert "url(" not in style
        assert "@import" not in style
        assert style.count("{") == style.count("}")

    def test_nothing_in_a_name_or_caption_becomes_markup(self, report):
        path, _, _ = report
        source, document = path.read_text(encoding="utf-8"), Document(path)
        for bad in ("<script", "<b>", "<small> machine", "<machine>", "<img src=x", "<i>"):
            assert bad not in source, bad
        assert '<script>alert("class")</script>' in document.text
        assert TITLE in document.text
        assert "<b>ours</b>" in document.text
        assert "a <small> machine" in document.text
        assert "<img src=x onerror=alert(" in document.text
        assert CLASS_NAMES[1] in document.text
        assert CLASS_NAMES[2] in document.text
        assert all(attributes.get("src") != "x" for attributes in document.of("img"))
        (policy,) = (one["content"] for one in document.of("meta") if "http-equiv" in one)
        assert policy.startswith("default-src 'none'")

    def test_escaping(self):
        assert element("p", "a<b>&\"'", attributes={"title": '"><b>'}).html == (
            '<p title="&quot;&gt;&lt;b&gt;">a&lt;b&gt;&amp;&quot;&#x27;</p>'
        )
        assert escape("a\x00b\u202ec").html == "a\ufffdb\ufffdc"
        assert element("p", element("br"), escape("é\n")).html == "<p><br>é\n</p>"

    def test_every_image_is_inside_and_has_its_words(self, report):
        path, _, details = report
        images = Document(path).of("img")
        shown = [one for one in images if one["src"].startswith("data:image/webp")]
        expected = sum(len(one.confused) + len(one.image_queries) for one in details)
        expected += sum(
            len(query.answers) + (query.rank > len(query.answers)) for one in details for query in one.text_queries
        )
        assert len(shown) == expected > 20
        for one in images:
            assert one["alt"].strip()
            kind, _, data = one["src"].partition(";base64,")
            decoded = base64.b64decode(data, validate=True)
            if kind == "data:image/svg+xml":
                assert ET.fromstring(decoded).tag.endswith("svg")
                continue
            picture = Image.open(io.BytesIO(decoded))
            assert picture.format == "WEBP"
            assert picture.size == (int(one["width"]), int(one["height"]))
            assert max(picture.size) <= LONGEST_SIDE
        # Two panels, each for light pages and for dark ones.
        assert [one.get("class") for one in images if one not in shown] == ["on-light", "on-dark"] * 2
        assert path.stat().st_size < 1_500_000

    def test_it_says_what_was_measured_and_how(self, report):
        text = Document(report[0]).text
        for said in (
            "2026-03-01 12:30 UTC",
            "1 measured here",
            "3 published",
            "9.8.7",
            "ab" * 32,
            "1 not an image",
            "60 1 1 not an image",
            "a <small> machine",
            "iPhone 12 Pro Max",
            "12.0 + 3.0 ms",
            "of 38 differ by more than the noise",
        ):
            assert said in text, said

    def test_its_sections(self, report):
        assert Document(report[0]).headings == [
            TITLE,
            "Models",
            "Accuracy over latency",
            "Comparisons",
            "mobileclip2_s2 beside mobileclip_s0",
            "Robustness",
            "All results",
            "Up close",
            "How it was measured",
            "Images used and left out",
        ]

    def test_numbers_of_a_comparison(self, report):
        """The bar and the tick of every data set are where its numbers are."""
        path, models, _ = report
        document = Document(path)
        fills = [
            float(re.match(r"width:([\d.]+)%", one["style"])[1]) for one in document.of("span") if _is(one, "fill")
        ]
        ticks = [float(re.match(r"left:([\d.]+)%", one["style"])[1]) for one in document.of("span") if _is(one, "tick")]
        ours, theirs = models[1].results, models[0].results
        keys = [key for key in theirs if key in ours]
        assert len(ticks) == len(keys) == 38
        assert sorted(ticks) == pytest.approx(sorted(100 * theirs[key].main_metric for key in keys), abs=0.01)
        assert sorted(fills[:38]) == pytest.approx(sorted(100 * ours[key].main_metric for key in keys), abs=0.01)

    def test_the_same_bytes_again(self, report, tmp_path):
        path, models, details = report
        write_report(tmp_path / "again.html", models, details, title=TITLE, when=WHEN)
        assert (tmp_path / "again.html").read_bytes() == path.read_bytes()

    def test_little_is_enough(self, tmp_path):
        ours = ModelResults(name="ours", results={}, source="measured")
        write_report(tmp_path / "r.html", [ours])
        assert "0 of 38" in Document(tmp_path / "r.html").text
        assert {path.stem for path in write_pictures(tmp_path / "p", [ours])} == {"models", "results"}

    def test_mistakes(self, tmp_path):
        published = published_model("mobileclip_s0")
        ours, details = measured(tmp_path)
        for models, message in (
            ([], "at least one model"),
            ([published, published], "need different names, repeated: 'mobileclip_s0'"),
            ([attrs.evolve(published, reference="x")], "is compared with 'x', which is no other model of the report"),
            ([attrs.evolve(published, reference="mobileclip_s0")], "which is no other model"),
            ([published], "there are details of '<b>ours</b>' on colours, but the report is about 'mobileclip_s0'"),
        ):
            for write in (write_report, write_pictures):
                with pytest.raises(ValueError, match=re.escape(message)):
                    write(tmp_path / "report", models, details)
        with pytest.raises(FileNotFoundError):
            write_report(tmp_path / "nowhere" / "r.html", [ours])

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'open-mobileclip\[report\]'"):
            write_report(tmp_path / "r.html", [published_model("mobileclip_s0")])


class TestPictures:
    def test_one_for_everything(self, report, tmp_path):
        _, models, details = report
        paths = write_pictures(tmp_path / "pictures", models, details)
        assert [path.name for path in paths] == [
            "latency-published-iphone-12-pro-max-core-ml-batch-of-1.png",
            "latency-measured-this-machine.png",
            "models.png",
            "robustness.png",
            "results.png",
            "bars-mobileclip2_s2.png",
            "confusion-b-ours-b-colours.png",
            "retrieval-b-ours-b-captions.png",
        ]
        for path in paths:
            image = Image.open(path)
            assert image.format == "PNG"
            assert path.stat().st_size < 2_000_000
            pixels = np.asarray(image.convert("L"))
            # Ink on paper, and nothing runs over the edge.
            assert 0.001 < (pixels < 128).mean() < 0.5, path.name
            assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all(), path.name
            # Nor is there much paper around it: inches, at 160 dots each.
            margins = [np.flatnonzero(lines)[[0, -1]] for lines in ((pixels < 250).any(0), (pixels < 250).any(1))]
            widest = max(max(first, size - last) for (first, last), size in zip(margins, image.size, strict=True)) / 160
            assert widest < (0.4 if path.stem in ("models", "robustness", "results") else 0.75), path.name

    def test_notes_are_as_wide_as_their_table(self):
        columns = tuple(Column(title=f"column {number}") for number in range(12))
        row = tuple(Cell(text="x" * 20) for _ in columns)
        table = Table(title="title", columns=columns, rows=(row,), notes=("of a note " * 60,))
        boxes = {one.get_text(): one.get_window_extent() for one in draw_table(table, LIGHT).texts}
        lines = [text for text in boxes if text.startswith(("of a note", "a note of", "note of a"))]
        assert len(lines) > 1
        cells = [box for text, box in boxes.items() if text == "x" * 20 or text.startswith("column")]
        width = max(box.x1 for box in cells) - boxes["title"].x0
        assert 0.6 * width < max(boxes[line].width for line in lines) <= 1.05 * width

    def test_names_that_differ_only_in_what_a_file_cannot_hold(self, tmp_path):
        published = published_model("mobileclip_s0")
        models = [attrs.evolve(published, name=name, reference="c", latencies=()) for name in ("a/b", "a:b")]
        paths = write_pictures(tmp_path, [*models, attrs.evolve(published, name="c", latencies=())])
        assert len(set(paths)) == len(paths) == 5

    def test_labels_hide_neither_each_other_nor_a_point(self):
        (panel,) = latency_panels([published_model(name) for name in published_models()])
        figure = draw_latency(panel, LIGHT)
        (axes,) = figure.axes
        labels = [one for one in axes.texts if one.get_text() in published_models()]
        assert len(labels) == len(published_models())
        boxes = [label.get_window_extent() for label in labels]
        for index, box in enumerate(boxes):
            assert axes.bbox.x0 <= box.x0 <= box.x1 <= axes.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:index]), labels[index].get_text()
            for point in panel.points:
                assert not box.contains(*axes.transData.transform((point.total_ms, 100 * point.score)))

    def test_points_are_where_their_numbers_are(self):
        (panel,) = latency_panels([published_model("mobileclip_s0"), published_model("mobileclip_s2")])
        (axes,) = draw_latency(panel, LIGHT).axes
        drawn = np.concatenate([np.asarray(one.get_offsets()) for one in axes.collections])
        assert drawn.tolist() == pytest.approx(np.array([[3.1, 58.12], [6.9, 63.66]]), abs=0.005)
        assert axes.get_ylim() == pytest.approx((57.12, 64.66), abs=0.005)
        assert axes.get_xlim()[0] < 3.1 / 1.4
        assert axes.get_xlim()[1] > 6.9 * 1.8

    def test_themes(self):
        (panel,) = latency_panels([published_model("mobileclip_s0")])
        light, dark = (np.asarray(Image.open(io.BytesIO(to_png(draw_latency(panel, one))))) for one in (LIGHT, DARK))
        assert light[0, 0, :3].tolist() == [255, 255, 255]
        assert dark[0, 0, :3].max() < 40
        assert to_svg(draw_latency(panel, DARK)) == to_svg(draw_latency(panel, DARK))

    def test_what_the_font_lacks(self):
        assert drawable("a\n b\u65e5\U00013000é−") == "a b\u25a1\u25a1é−"


def _ids(document):
    return {attributes["id"] for _, attributes in document.elements if "id" in attributes}


def _is(attributes, name):
    return attributes.get("class") == name and "style" in attributes

"""`mobileclip data captions`, run as people run it."""

import attrs
import pytest

from mobileclip.data import ImageTextSample, write_shard
from mobileclip.evaluation.captions import distinct_ngrams, mean_words, names_recalled
from tests.cli.test_cli import run
from tests.data.made_samples import encoded


@pytest.fixture
def places(tmp_path):
    """Two data sets of the same pictures, of which one cannot be decoded and one is in the second alone."""
    samples = [
        ImageTextSample(
            key=f"{index}",
            captions=(f"a plain heart {index}",),
            image=encoded(40, 30, seed=index) if index else b"no picture",
            image_extension="png",
            metadata={"label": "heart" if index % 2 else "star"},
        )
        for index in range(6)
    ]
    write_shard(tmp_path / "first.tar", samples)
    others = [attrs.evolve(one, image=None, syn_captions={"syn_text": ("a <b>star</b>", "a star")}) for one in samples]
    write_shard(tmp_path / "second.tar", [*others, attrs.evolve(others[0], key="9")])
    return tmp_path / "first.tar", tmp_path / "second.tar"


@pytest.mark.extra("report")
def test_sets_stand_side_by_side_in_a_table_and_on_a_page(places, tmp_path, capsys):
    page = tmp_path / "page.html"
    status, out, err = run(capsys, "data", "captions", *places, "-m", "icons", "-o", page, "--device", "cpu")
    assert status == 0, err
    assert "Captions of 5 pictures" in out
    rows = {name: values for name, *values in (line.split("\t") for line in out.splitlines())}
    # Three of the five are hearts.
    assert rows["first"][:6] == ["1.0", "4.0", "40.0", "46.7", "60.0", "60.0"]
    assert rows["second syn_text"][:6] == ["2.0", "3.0", "10.0", "20.0", "20.0", "40.0"]
    assert all(-1 < float(values[6]) < 1 and 0 <= float(values[7]) <= 100 for values in (rows["first"], rows["second"]))
    assert "left out" in err
    text = page.read_text()
    assert text.count("data:image/webp") == 5
    assert "a &lt;b&gt;star&lt;/b&gt;" in text
    assert "<b>star" not in text
    status, _, err = run(capsys, "data", "captions", *places, "-o", page)
    assert (status, "page.html" in err) == (2, True)
    status, out, _ = run(capsys, "data", "captions", *places, "--sets", "syn_text", "--samples", "3", "--device", "cpu")
    assert "Captions of 2 pictures" in out
    assert "first" not in out


def test_places_without_a_picture_in_common_are_refused(places, tmp_path, capsys):
    write_shard(tmp_path / "other.tar", [ImageTextSample(key="z", captions=("a",), image=encoded(9, 9))])
    status, _, err = run(capsys, "data", "captions", places[0], tmp_path / "other.tar")
    assert (status, "no picture in common" in err) == (2, True)


def test_measures_of_texts():
    texts = [("A red heart.", "a red heart"), ("a star-shaped thing",)]
    assert mean_words(texts) == pytest.approx(10 / 3)
    assert distinct_ngrams(texts, 1) == 6 / 10
    assert distinct_ngrams(texts, 9) == 0
    assert names_recalled(texts, ["Red Heart", "star"]) == 1
    assert names_recalled(texts, ["ed heart", "starshaped"]) == 0

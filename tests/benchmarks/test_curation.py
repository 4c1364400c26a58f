"""What the curation benchmark plants, and how it judges what was found."""

import io

import attrs
import numpy as np
import pytest
from PIL import Image

from benchmarks.curation import KINDS, CurationBenchSpec, Planted, Point, _point, altered, planted
from mobileclip.data import ImageTextSample, decode_image

SPEC = CurationBenchSpec(wrong_share=0.2, copied_share=0.3, num_leaks=6)


def drawing(number):
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[8:56, 8:56] = np.random.default_rng(number).integers(0, 256, (48, 48, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return ImageTextSample(
        key=f"d{number:03d}", captions=(f"thing {number}", "more"), image=stream.getvalue(), image_extension="png"
    )


@pytest.fixture(scope="module")
def truth():
    return planted(SPEC, [drawing(number) for number in range(56)])


def test_every_share_is_planted(truth):
    assert len(truth.tests) == 6
    assert len(truth.pairs) == 50 + 15 + 6
    assert len(truth.wrong) == 10
    assert len({sample.key for sample in truth.pairs}) == len(truth.pairs)
    copies = {key: origin for key, origin in truth.source.items() if key.startswith("copy")}
    assert len(copies) == 15
    assert not truth.wrong & set(copies.values())
    assert set(truth.kind.values()) == set(KINDS)
    assert {origin for key, origin in truth.source.items() if key.startswith("leak")} == {
        sample.key for sample in truth.tests
    }


def test_wrong_captions_are_another_s_and_all_others_are_right(truth):
    for sample in truth.pairs:
        origin = truth.source.get(sample.key, sample.key)
        is_right = sample.captions == (f"thing {int(origin[1:])}",)
        assert is_right == (sample.key not in truth.wrong)


def test_it_is_the_same_for_a_seed(truth):
    again = planted(SPEC, [drawing(number) for number in range(56)])
    assert [(one.key, one.captions, one.image) for one in again.pairs] == [
        (one.key, one.captions, one.image) for one in truth.pairs
    ]
    other = planted(attrs.evolve(SPEC, seed=1), [drawing(number) for number in range(56)])
    assert other.wrong != truth.wrong


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_picture_is_another_of_the_same_size(kind):
    image = decode_image(drawing(3).image)
    other = altered(image, kind, np.random.default_rng(0))
    assert other.size == image.size
    assert other.mode == "RGB"
    assert np.abs(np.asarray(other, np.int16) - np.asarray(image, np.int16)).mean() > 3


def test_pairs_are_judged_by_what_they_are_copies_of():
    truth = Planted(
        pairs=(),
        tests=(),
        wrong=frozenset(),
        source={"copy-0000": "a", "copy-0001": "b", "leak-0000": "t"},
        kind={"copy-0000": "smaller", "copy-0001": "cropped", "leak-0000": "smaller"},
    )
    found = _point(0.9, [("copy-0000", "a"), ("c", "d")], "copy", truth)
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert found.recall_of == {"recoloured": 0.0, "smaller": 1.0, "cropped": 0.0}
    assert _point(0.9, [("a", "copy-0000")], "copy", truth).precision == 1.0
    assert _point(0.9, [], "copy", truth) == Point(
        threshold=0.9, precision=1.0, recall=0.0, recall_of=dict.fromkeys(KINDS, 0.0)
    )
    assert _point(0.9, [("leak-0000", "t")], "leak", truth).recall == 1.0
